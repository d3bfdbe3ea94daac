#!/usr/bin/env node
// A bridge in Node.js 18 or later, without packages.
//
//     quaybridge worker --service work --bridge "node examples/node/bridge.js"
//     quaybridge conformance -- node examples/node/bridge.js
//
// Put your own commands into `commands`; the rest of this file is the protocol (docs/wire.md).
"use strict";

const { setTimeout: pause } = require("node:timers/promises");

const FRAME_LIMIT = 16 * 1024 * 1024; // bytes of a payload
const CONCURRENCY = 16; // requests at once
const MOST_REMEMBERED = 1024; // cancels that came before their request

// A command is given its args and the request: `signal` aborts when it is cancelled, `chunk` and `progress` send
// something before the final reply. What it returns is the result; what it throws, the failure.
const commands = new Map(
  Object.entries({
    async echo(args) {
      return args;
    },
    async sleep({ seconds }, { signal }) {
      if (typeof seconds !== "number") throw new TypeError("seconds must be a number");
      await pause(seconds * 1000, undefined, { signal });
      return seconds;
    },
    async count({ to }, { chunk }) {
      if (!Number.isInteger(to)) throw new TypeError("to must be an integer");
      for (let number = 0; number < to; number++) chunk(number);
      return to;
    },
    async log({ bytes }) {
      if (!Number.isInteger(bytes)) throw new TypeError("bytes must be an integer");
      for (let left = bytes; left > 0; left -= 1024) process.stderr.write("x".repeat(Math.min(left, 1024) - 1) + "\n");
      return bytes;
    },
  }),
);

const names = () => [...commands.keys()];

// For people who ask what there is: quaybridge call work --describe
const descriptions = [
  { name: "echo", doc: "Gives back its args.", more: true, result: "object" },
  { name: "sleep", args: [{ name: "seconds", type: "number", required: true }], result: "number" },
  { name: "count", doc: "The numbers from 0 on.", args: [{ name: "to", type: "integer", required: true }], streams: true },
  { name: "log", args: [{ name: "bytes", type: "integer", required: true }], result: "integer" },
];

// Frames own stdout. What anybody else writes there (console.log, a library) goes to stderr.
const writeOut = process.stdout.write.bind(process.stdout);
process.stdout.write = process.stderr.write.bind(process.stderr);
process.stdout.on("error", () => process.exit(0)); // nobody listens any more

function send(message) {
  let payload = Buffer.from(JSON.stringify({ ...message, timestamp: new Date().toISOString() }));
  if (payload.length > FRAME_LIMIT) {
    const error = `TooLarge: a message of ${payload.length} bytes, the limit is ${FRAME_LIMIT}`;
    payload = Buffer.from(JSON.stringify({ id: message.id, success: false, error }));
  }
  const header = Buffer.alloc(4);
  header.writeUInt32BE(payload.length);
  writeOut(Buffer.concat([header, payload]));
}

// Bytes are Buffers here, and objects with one key in between (docs/wire.md, 1.12).
function unpacked(value, key) {
  if (Array.isArray(value)) return value.map((item) => unpacked(item, key));
  if (!isObject(value)) return value;
  const [first, ...others] = Object.keys(value);
  if (first !== key || others.length > 0) {
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, unpacked(item, key)]));
  }
  const bytes = Buffer.from(String(value[key]), "base64");
  if (bytes.toString("base64") !== value[key]) throw new BadRequest("what should stand for bytes is no base64");
  return bytes;
}

function packed(place, value, taken) {
  let found = false;
  const pack = (item, key) => {
    if (Array.isArray(item)) return item.map((inner) => pack(inner, key));
    if (Buffer.isBuffer(item)) found = true;
    if (Buffer.isBuffer(item)) return key === undefined ? null : { [key]: item.toString("base64") };
    if (!isObject(item)) return item;
    return Object.fromEntries(Object.entries(item).map(([name, inner]) => [name, pack(inner, key)]));
  };
  const text = JSON.stringify(pack(value)) ?? "";
  if (!found) return { [place]: value };
  if (!taken) throw new TypeError("there are bytes in it, and whoever asked does not say that they are taken");
  let key = "$bytes";
  while (text.includes(JSON.stringify(key))) key += "_";
  return { [place]: pack(value, key), binary: key };
}

class BadRequest extends Error {}

const running = new Map(); // id → AbortController
const cancelled = new Set(); // ids whose cancel came first
let ending = false;

async function run({ id, command, args, binary, takes_binary: taken }) {
  const stop = new AbortController();
  running.set(id, stop);
  let seq = 0;
  const request = {
    id,
    signal: stop.signal,
    chunk: (data) => send({ id, event: "chunk", seq: seq++, ...packed("data", data, taken) }),
    progress: (data) => send({ id, event: "progress", data }),
  };
  try {
    if (cancelled.delete(id)) stop.abort();
    const found = commands.get(command);
    if (!found) throw new Error(`unknown command ${JSON.stringify(command)}; there are: ${names().join(", ")}`);
    stop.signal.throwIfAborted();
    const unpack = ([name, value]) => [name, unpacked(value, binary)]; // args as a whole stand for no bytes
    const given = binary === undefined ? args : Object.fromEntries(Object.entries(args).map(unpack));
    send({ id, success: true, ...packed("result", (await found(given, request)) ?? null, taken) });
  } catch (error) {
    const { name, message, stack } = error instanceof Error ? error : new Error(String(error));
    const info = { type: name, message, traceback: stack, bad_request: error instanceof BadRequest };
    const told = { error: `${name}: ${message}`, error_info: info };
    send({ id, success: false, ...(stop.signal.aborted ? { error: "cancelled" } : told) });
  } finally {
    running.delete(id);
    if (ending && running.size === 0) process.exit(0);
  }
}

function cancel(id) {
  if (running.has(id)) {
    running.get(id).abort();
  } else {
    cancelled.add(id);
    if (cancelled.size > MOST_REMEMBERED) cancelled.delete(cancelled.values().next().value);
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function serve(payload) {
  let id, command, args, request;
  try {
    request = JSON.parse(utf8.decode(payload));
    ({ id, command, args } = request);
    args ??= {};
    if (!Number.isSafeInteger(id)) throw new Error("a request needs an id");
    if (typeof command !== "string") throw new Error("a request needs a command");
  } catch (error) {
    send({ id: null, success: false, error: `cannot read the frame: ${error.message}` });
    return;
  }
  if (!isObject(args)) {
    send({ id, success: false, error: "args must be an object" });
  } else if (command === "ping") {
    const claims = { protocol: 1, concurrency: CONCURRENCY, cancel: true, stream: true, shutdown: true, binary: true };
    const capabilities = { ...claims, commands: names(), descriptions };
    send({ id, success: true, result: { status: "ok", capabilities } });
  } else if (command === "cancel") {
    cancel(args.id); // without a reply of its own
  } else if (command === "shutdown") {
    send({ id, success: true, result: { status: "ended" } });
    ending = true;
    if (running.size === 0) process.exit(0);
  } else {
    run({ ...request, args });
  }
}

let chunks = [];
let available = 0;
let length = null; // of the frame whose header is read

function take(size) {
  const all = Buffer.concat(chunks);
  chunks = [all.subarray(size)];
  available -= size;
  return all.subarray(0, size);
}

process.stdin.on("data", (chunk) => {
  chunks.push(chunk);
  available += chunk.length;
  while (available >= (length ?? 4)) {
    if (length !== null) {
      const payload = take(length);
      length = null;
      serve(payload);
      continue;
    }
    length = take(4).readUInt32BE();
    if (length === 0 || length > FRAME_LIMIT) {
      send({ id: null, success: false, error: `a length of ${length} bytes: standard input holds no frames` });
      process.exit(1);
    }
  }
});
process.stdin.on("end", () => process.exit(0)); // whoever asked is gone
