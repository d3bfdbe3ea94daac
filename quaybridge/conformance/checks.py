"""The checks: one function for each, from the handshake to the last process.

A check gives what it saw, as one short sentence; raises Unmet with a reason and a fix; or NotClaimed.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, Final

import psutil

from bridge_protocol import codec
from bridge_protocol.binary import BINARY, KEY, TAKES_BINARY, restore
from bridge_protocol.errors import FrameError
from bridge_protocol.frames import encode_frame
from bridge_protocol.messages import MAX_ID, Chunk, Failure, Request, Result, encode_request
from quaybridge.conformance.bench import Bench
from quaybridge.conformance.report import NotClaimed, Unmet
from quaybridge.conformance.subject import ONE_REPLY, ONLY_FRAMES, SURVIVE, Pending, Subject, descendants, shown

MIB = 1024 * 1024
LOG_BYTES = 4 * MIB
MOST_UNASKED_LOG = MIB  # bytes on stderr that nobody asked for, over the whole checklist
LONG = 3600.0  # seconds of sleep that nobody waits for
TURN = 0.2  # seconds of sleep, by which it shows that two did not sleep at once
ORPHAN_SECONDS = 2.0  # what was started may take so long to end, after the bridge did

IDS: Final = (1, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 10**15 + 1, MAX_ID - 1, MAX_ID)
VALUES: Final[dict[str, Any]] = {
    "null": None,
    "true and false": [True, False],
    "small integers": [0, 1, -1, 255, 256],
    "integers to 2^53−1": [MAX_ID, -MAX_ID, 2**31, 2**32, 10**15 + 1],
    "fractions": [0.1, -2.5, 1e-7, 3.141592653589793, 1e21],
    "the least and the greatest float": [2.2250738585072014e-308, 1.7976931348623157e308],
    "empty ones": ["", [], {}, [[]], [{}]],
    "the empty key": {"": 1},
    "keys of the protocol": {"id": -1, "success": False, "error": "no", "command": "shutdown", "args": None},
    "keys that mean something somewhere": {"__proto__": 1, "constructor": 2, "toString": 3, "__class__": 4},
    "JSON in text": '{"id":1,"success":true}',
    "digits in text": "18446744073709551616",
    "100 levels": json.loads("[" * 100 + "]" * 100),
    "1,000 items": list(range(1000)),
    "quotes and backslashes": '\\ " \\" \\\\ / \\/ \\u0041',
}
LONG_INTEGERS: Final = (2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1)
TEXTS: Final = {
    "accents": "déjà vu, ñ, ß",
    "combining characters": "e\u0301 n\u0303",
    "other scripts": "Привет 你好 こんにちは שלום مرحبا",
    "characters past U+FFFF": "😀 👩‍👩‍👧 𝔘 \U0010fffd",
    "U+0000 and control characters": "\x00 \x01 \x1b[31m \x7f \x85",
    "line ends": "\n \r \r\n \u2028 \u2029",
    "a byte order mark": "\ufeff…\ufeff",
    "directions": "\u202eabc\u202c",
    "noncharacters": "\ufffe \uffff",
}
_KEEP = "give back the args as they came"


async def handshake(bench: Bench) -> str:
    """The first frame, and what the bridge claims in answer to it."""
    subject = await bench.new()
    claims = subject.capabilities
    said = [name for name in ("cancel", "stream", "shutdown") if getattr(claims, name)]
    if claims.concurrency > 1:
        said.insert(0, f"{claims.concurrency} requests at once")
    return f"claims {', '.join(said)}" if said else "claims nothing beyond a reply to each request"


async def ids(bench: Bench) -> str:
    """Replies carry their request's id, to the last digit."""
    subject = await bench.subject()
    for request_id in IDS:
        said = await subject.call("ping", {}, request_id)
        if isinstance(said, Failure):
            fix = "answer ping with success, whatever its id"
            raise Unmet(f"ping with id {request_id} was refused: {shown(said.error)}", fix)
    return f"1 … {MAX_ID:,}"


async def values(bench: Bench) -> str:
    """Values that are read or written wrongly somewhere come back as they were."""
    for name, value in VALUES.items():
        await _same(bench, name, value)
    return f"{len(VALUES)} kinds came back as they were"


async def unicode(bench: Bench) -> str:
    """Text comes back as it was, whichever way its writer escapes it."""
    command, key = await bench.echo_command()
    for name, text in TEXTS.items():
        await _same(bench, name, {"text": text, text: "key"})
        subject = await bench.subject()
        pending = subject.expect(9)
        request = {"id": 9, "command": command, "args": {"value": text}}
        subject.send(json.dumps(request, ensure_ascii=True, separators=(",", ":")).encode())  # 😀 as \ud83d\ude00
        found = bench.echoed(await subject.reply(pending), key)
        if found != text:
            fix = "read \\uXXXX escapes, in pairs for characters past U+FFFF"
            raise Unmet(f"{name}, escaped, came back as {_quoted(found)}", fix)
    return f"{len(TEXTS)} kinds, as UTF-8 and escaped"


async def long_integers(bench: Bench) -> str:
    """Integers of 64 bits. JavaScript cannot, and need not."""
    for number in LONG_INTEGERS:
        found = await bench.echo(number)
        if found != number or isinstance(found, float):
            raise NotClaimed(f"{number} came back as {_quoted(found)}: callers must send such integers as text")
    return "all of 64 bits"


async def any_json(bench: Bench) -> str:
    """A request comes as its producer wrote it: spaces, order, escapes and further fields are its own affair."""
    subject = await bench.subject()
    for name, text in {
        "spaces and line ends": '{ "id" :\t7 , "command" : "ping" ,\r\n "args" : { } } \n',
        "another order": '{"timestamp":"2024-05-01T12:00:00Z","args":{},"command":"ping","id":7}',
        "unknown fields": '{"x":[1,{"id":8}],"id":7,"y":{"command":"no"},"command":"ping","args":{},"z":null}',
        "the fields a node may add": '{"attempt":2,"id":7,"command":"ping","args":{},"deadline":32503680000000,'
        '"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}',
        "escaped letters": '{"\\u0069d":7,"command":"p\\u0069ng","args":{}}',
        "no timestamp": '{"id":7,"command":"ping","args":{}}',
        "a session's id among the args": '{"id":7,"command":"ping","args":{"session_id":"s1"}}',
    }.items():
        pending = subject.expect(7)
        subject.send(text.encode())
        said = await subject.reply(pending)
        if isinstance(said, Failure):
            fix = "read requests with a JSON parser, and pass over fields you do not know"
            raise Unmet(f"a ping with {name} was refused: {shown(said.error)}", fix)
    return "spaces, order, escapes and unknown fields"


async def large(bench: Bench) -> str:
    """1 MiB there and back; of a bridge that takes more at once, two of them, so that both ways are full."""
    subject = await bench.subject()
    try:
        command, key = await bench.echo_command()
    except NotClaimed:
        await subject.call("ping", {"padding": "x" * MIB})
        return "1 MiB in; the way back is shown by a command 'echo'"
    count = min(2, bench.capabilities.concurrency)
    texts = [letter * MIB for letter in "xy"[:count]]
    asked = [subject.ask(command, {"value": text}) for text in texts]
    for text, pending in zip(texts, asked, strict=True):
        if bench.echoed(await subject.reply(pending), key) != text:
            raise Unmet("1 MiB of text did not come back as it was", "read until a frame is whole, and write all of it")
    return "1 MiB there and back" if count == 1 else "2 × 1 MiB, both ways at once"


async def split_writes(bench: Bench) -> str:
    """A frame that comes byte by byte, as pipes may have it."""
    subject = await bench.subject()
    frame = encode_frame(encode_request(Request(id=11, command="ping", args={})))
    pending = subject.expect(11)
    for position in range(len(frame)):
        subject.write(frame[position : position + 1])
        await asyncio.sleep(0.002)  # so that each byte is a read of its own
    try:
        said = await subject.reply(pending)
    except Unmet as unmet:
        fix = "a read gives what is there: read on until the length's 4 bytes, and then the payload, are whole"
        raise Unmet(f"written byte by byte: {unmet.reason}", fix) from None
    if isinstance(said, Failure):
        raise Unmet(f"written byte by byte: {shown(said.error)}", "read until a frame is whole")
    return f"{len(frame)} bytes, one by one"


async def concurrent(bench: Bench) -> str:
    """As many requests at once as it claims, in one write; each gets its own reply, in any order."""
    claimed = bench.capabilities.concurrency
    if claimed == 1:
        raise NotClaimed("one request at a time")
    subject = await bench.subject()
    try:
        command, key = await bench.echo_command()
        echoes = True
    except NotClaimed:
        command, key, echoes = "ping", None, False
    count = min(claimed, 32)
    requests = [Request(id=1000 + n, command=command, args={"value": n}) for n in range(count)]
    asked = [subject.expect(request.id) for request in requests]
    subject.write(b"".join(encode_frame(encode_request(request)) for request in requests))
    for n, pending in enumerate(asked):
        try:
            said = await subject.reply(pending)
        except Unmet as unmet:
            fix = "read every frame that a read brought; or claim a concurrency of 1"
            raise Unmet(f"{count} at once: {unmet.reason}", fix) from None
        if echoes and bench.echoed(said, key) != n:
            raise Unmet("a request got another one's result", "keep each request's state, and its id, by itself")
    return f"{count} at once"


async def stream(bench: Bench) -> str:
    """Chunks counted from 0, then the final reply, and nothing after it."""
    if not bench.capabilities.stream:
        raise NotClaimed("capabilities.stream is not true")
    command = bench.command_for("count")
    subject = await bench.subject()
    fix = (
        'send {"id", "event": "chunk", "seq": 0, 1, 2 …, "data"} for each piece, and after the last one the final reply'
    )
    for to in (5, 0):
        pending = subject.ask(command, {"to": to})
        said = await subject.reply(pending)
        if isinstance(said, Failure):
            raise Unmet(f"{command} was refused: {shown(said.error)}", fix)
        seqs = [event.seq for event in pending.events if isinstance(event, Chunk)]
        if seqs != list(range(to)):
            raise Unmet(f"{to} chunks were asked for, and their seq were {seqs}", fix)
    return "chunks in order, then the reply"


async def cancel(bench: Bench) -> str:
    """A cancel ends what runs with one final reply; has no reply of its own; may come before its request."""
    if not bench.capabilities.cancel:
        raise NotClaimed("capabilities.cancel is not true")
    subject = await bench.subject()
    await subject.call("ping", {}, 20)
    subject.cancel({"id": 20})  # it crossed that reply on the way
    subject.cancel({})
    try:
        await subject.ping()
    except Unmet as unmet:
        raise Unmet(
            f"after a late cancel: {unmet.reason}", "a cancel has no reply of its own, whatever it names"
        ) from None
    command = bench.command_for("sleep")
    subject.cancel({"id": 21})
    await _cancelled(subject, subject.ask(command, {"seconds": LONG}, 21), "that came before its request", _REMEMBER)
    asked = subject.ask(command, {"seconds": LONG})
    await asyncio.sleep(0.1)  # until it works
    subject.cancel({"id": asked.id})
    await _cancelled(subject, asked, "of running work", "read on while you work, and stop the work")
    await subject.ping()
    return "early, late, and of running work"


async def ahead(bench: Bench) -> str:
    """What waits behind a request is begun when that is answered, in order; or given back, if it is asked back."""
    claims = bench.capabilities
    if not claims.ahead:
        raise NotClaimed("capabilities.ahead is not given")
    if claims.concurrency > 1:
        raise NotClaimed("it takes several at once: a node sends it none ahead")
    if not claims.cancel:
        raise Unmet("claimed without cancel, by which a node asks back", "claim cancel too, or not ahead")
    command = bench.command_for("sleep")
    subject = await bench.subject()
    count = min(claims.ahead, 16)
    await _in_turn(subject, command, count)
    running, *waiting = (subject.ask(command, {"seconds": LONG}) for _ in range(1 + count))
    for each in waiting:
        subject.cancel({"id": each.id, "unbegun": True})
    for each in waiting:
        try:
            said = await subject.reply(each)
        except Unmet as unmet:
            raise Unmet(f"one that waited was asked back: {unmet.reason}", _GIVE_BACK) from None
        if isinstance(said, Result) or not said.given_back:
            what = "success" if isinstance(said, Result) else shown(said.error)
            raise Unmet(f"one that waited was asked back: answered with {what}", _GIVE_BACK)
    subject.cancel({"id": running.id, "unbegun": True})
    subject.cancel({"id": running.id})
    ended = await _cancelled(subject, running, "of what ran before them", "read on while you work, and stop the work")
    if ended.given_back:
        raise Unmet("the one that ran was asked back, and given back", "run on: only what is not begun is given back")
    again = await subject.call(command, {"seconds": 0}, waiting[0].id)
    subject.cancel({"id": 22, "unbegun": True})
    never_seen = await subject.call(command, {"seconds": 0}, 22)
    if isinstance(again, Failure) or isinstance(never_seen, Failure):
        raise Unmet("a request that was asked back before was refused", "remember nothing of what you were asked back")
    return f"{count} in turn, and given back"


async def binary(bench: Bench) -> str:
    """Bytes come back as they were, and are declared; what only looks like them is left alone."""
    if not bench.capabilities.binary:
        raise NotClaimed("capabilities.binary is not true")
    command, key = await bench.echo_command()
    lookalike = {KEY: "aGk="}
    sent = [b"", bytes(range(256)), {"deep": [b"\xff" * 100_000]}, lookalike]
    subject = await bench.subject()
    declared = encode_request(Request(id=41, command=command, args={"value": sent}, takes_binary=True))
    found = bench.echoed(_restored(await _said(subject, 41, declared)), key)
    if found != sent:
        raise Unmet("bytes did not come back as they were", _DECLARE)
    plain = codec.encode({"id": 42, "command": command, "args": {"value": lookalike}, TAKES_BINARY: True})
    if bench.echoed(_restored(await _said(subject, 42, plain)), key) != lookalike:
        raise Unmet("in a request without 'binary' an object was taken for bytes", _DECLARE)
    untaken = encode_request(Request(id=43, command=command, args={"value": [b"x"]}))
    said = await _said(subject, 43, untaken)
    if isinstance(said, Result) and b"x" in bench.echoed(_restored(said), key):
        raise Unmet("bytes came back to a request without 'takes_binary'", "answer such a request with a failure")
    wrong = codec.encode({"id": 44, "command": command, "args": {"value": {KEY: "no base64"}}, BINARY: KEY})
    pending = subject.expect(44)
    subject.send(wrong)
    await _answered(subject, pending, "what should be base64, and is not")
    return "there and back; and what only looks like them"


async def stderr_flood(bench: Bench) -> str:
    """Much on stderr disturbs nothing; and nobody writes much there unasked."""
    command = bench.command_for("log")
    subject = await bench.subject()
    before = subject.stderr_bytes
    said = await subject.call(command, {"bytes": LOG_BYTES})
    if isinstance(said, Failure):
        raise Unmet(f"{command} was refused: {shown(said.error)}", "write args.bytes bytes to stderr")
    await subject.ping()
    if not await subject.wrote_to_stderr(before + LOG_BYTES):
        written = subject.stderr_bytes - before
        raise Unmet(f"of {LOG_BYTES:,} bytes {written:,} arrived", "write args.bytes bytes to stderr, and flush them")
    return f"{LOG_BYTES // MIB} MiB, and all is well"


async def unknown_command(bench: Bench) -> str:
    """A caller's typing mistake is answered, and costs nothing."""
    subject = await bench.subject()
    said = await subject.call("quaybridge_no_such_command", {})
    await subject.ping()
    if isinstance(said, Result):
        return "answered with success: callers cannot tell that there is none"
    return f"refused: {shown(said.error, 60)}"


async def malformed_args(bench: Bench) -> str:
    """Args that are no object, or not there: any answer will do, and an end, but no silence and no crash."""
    ends = []
    for name, args in {"a list": "[1]", "text": '"x"', "a number": "7", "null": "null", "missing": None}.items():
        subject = await bench.subject()
        pending = subject.expect(31)
        given = f',"args":{args}' if args is not None else ""
        subject.send(f'{{"id":31,"command":"ping"{given}}}'.encode())
        if not await _answered(subject, pending, f"args that are {name}"):
            ends.append(name)
    return f"it ended, of args that were: {', '.join(ends)}" if ends else "each was answered"


async def unreadable(bench: Bench) -> str:
    """A frame that holds no JSON, which no node sends: a failure with id null, or an end, but no silence."""
    subject = await bench.subject()
    pending = subject.expect(32)
    subject.send(b"{this is not JSON}")
    answered = await _answered(subject, pending, "a frame that is not JSON")
    await bench.discard()  # a node does the same
    return "answered with id null" if answered else "it ended"


async def end_of_input(bench: Bench) -> str:
    """Its stdin ends: so does the bridge."""
    subject = await bench.subject()
    subject.end_input()
    if not await subject.ended():
        await bench.discard()
        fix = "exit when a read from stdin gives nothing: the node is gone, or wants you to go"
        raise Unmet(f"it still ran {bench.timeout:g} s after its stdin ended", fix)
    if subject.signalled:
        raise Unmet(f"it crashed: {subject.how_it_ended}", "exit with code 0 at the end of stdin")
    return f"exit code {subject.exit_code}"


async def end_of_input_busy(bench: Bench) -> str:
    """Its stdin ends while it works: nobody wants the result any more."""
    command = bench.command_for("sleep")
    subject = await bench.subject()
    subject.ask(command, {"seconds": LONG})
    await asyncio.sleep(0.1)  # until it works
    subject.end_input()
    if not await subject.ended():
        await bench.discard()
        fix = "read on while you work, in a thread if need be, and exit at the end of stdin"
        raise Unmet(f"it still worked {bench.timeout:g} s after its stdin ended", fix)
    return subject.how_it_ended.partition(";")[0]


async def shutdown(bench: Bench) -> str:
    """A `shutdown` ends it, though its stdin stays open."""
    if not bench.capabilities.shutdown:
        raise NotClaimed("capabilities.shutdown is not true")
    subject = await bench.subject()
    subject.shut_down()
    if not await subject.ended():
        await bench.discard()
        raise Unmet(f"it still ran {bench.timeout:g} s after a shutdown", "finish what runs, and exit with code 0")
    if subject.exit_code != 0:
        raise Unmet(f"it ended with {subject.how_it_ended}", "exit with code 0")
    return "exit code 0"


async def sigterm(bench: Bench) -> str:
    """SIGTERM, to it and its children: the node's second word, before SIGKILL."""
    subject = await bench.subject()
    subject.terminate()
    if not await subject.ended():
        await bench.discard()
        fix = "leave SIGTERM its default, or clean up and exit"
        raise Unmet(f"it still ran {bench.timeout:g} s after SIGTERM", fix)
    return subject.how_it_ended.partition(";")[0]


async def one_reply(bench: Bench) -> str:
    """Over all of it: no second reply, no event after the reply, no frame nobody asked for."""
    unasked = [text for subject in bench.subjects for text in subject.unasked]
    if unasked:
        more = f", and {len(unasked) - 1} more" if len(unasked) > 1 else ""
        raise Unmet(unasked[0] + more, ONE_REPLY)
    return "one for each request"


async def clean_stdout(bench: Bench) -> str:
    """Over all of it: not one byte on stdout that is no frame."""
    for subject in bench.subjects:
        if subject.noise is not None:
            raise Unmet(subject.noise, ONLY_FRAMES)
    return "nothing but frames"


async def quiet_stderr(bench: Bench) -> str:
    """Over all of it: stderr is for a person to read."""
    written = sum(subject.stderr_bytes for subject in bench.subjects)
    try:
        bench.command_for("log")
    except NotClaimed:
        allowed = MOST_UNASKED_LOG
    else:
        allowed = MOST_UNASKED_LOG + LOG_BYTES
    if written > allowed:
        raise Unmet(f"{written / MIB:.1f} MiB on stderr", "log less: every line of it lands in the node's log")
    return f"{written:,} bytes"


async def no_orphans(bench: Bench) -> str:
    """Over all of it: what it started is gone after its own end."""
    deadline = asyncio.get_running_loop().time() + ORPHAN_SECONDS
    while left := list(descendants(subject for subject in bench.subjects if not subject.killed)):
        if asyncio.get_running_loop().time() > deadline:
            raise Unmet(f"still there after its end: {', '.join(map(_named, left[:3]))}", _NO_CHILDREN)
        await asyncio.sleep(0.05)
    return "nothing is left of it"


_IN_TURN = "begin a request when the one before it is answered; or claim a concurrency, and not ahead"
_GIVE_BACK = (
    'read on while you work, and answer a cancel with "unbegun": true, of a request that waits, at once with success '
    'false and {"error_info": {"type": "given_back"}}'
)
_REMEMBER = "remember the ids of cancels whose request has not come, and answer that at once with success false"
_DECLARE = (
    "name in 'binary' of a reply the key of the objects that stand for bytes in it, and leave all objects alone where "
    "there is no 'binary'"
)
_NO_CHILDREN = "end what you start before you exit; a child that reads a pipe from you sees its end by itself"


async def _in_turn(subject: Subject, command: str, count: int) -> None:
    """Raises Unmet unless that many behind one are answered after it, in order, and the first not begun with it."""
    answered: list[asyncio.Future[Result | Failure]] = []
    began = asyncio.get_running_loop().time()
    asked = [subject.ask(command, {"seconds": TURN if number < 2 else 0}) for number in range(1 + count)]
    for pending in asked:
        pending.final.add_done_callback(answered.append)
    for number, pending in enumerate(asked):
        said = await subject.reply(pending)
        if isinstance(said, Failure):
            raise Unmet(f"{command} was refused: {shown(said.error)}", f"wait for args.seconds in {command}")
        if number == 1 and asyncio.get_running_loop().time() - began < 1.9 * TURN:
            raise Unmet("one that was to wait ran beside the one before it", _IN_TURN)
    await asyncio.sleep(0)  # a future that is done calls back in the loop's next turn
    if answered != [pending.final for pending in asked]:
        raise Unmet("they were not answered in the order they came", _IN_TURN)


async def _cancelled(subject: Subject, asked: Pending, which: str, fix: str) -> Failure:
    try:
        said = await subject.reply(asked)
    except Unmet as unmet:
        raise Unmet(f"a cancel {which}: {unmet.reason}", fix) from None
    if isinstance(said, Result):
        raise Unmet(f"a cancel {which}: answered with success", "answer what was cancelled with success false")
    return said


async def _said(subject: Subject, request_id: int, payload: bytes) -> Result | Failure:
    pending = subject.expect(request_id)
    subject.send(payload)
    return await subject.reply(pending)


def _restored(said: Result | Failure) -> Result | Failure:
    """The same, with the bytes that it declares."""
    if isinstance(said, Failure) or said.binary is None:
        return said
    try:
        return replace(said, result=restore(said.result, said.binary))
    except FrameError as error:
        raise Unmet(f"its result: {error.detail}", _DECLARE) from None


async def _answered(subject: Subject, pending: Pending, of: str) -> bool:
    """Whether there was an answer, and not an end. Raises Unmet for silence, a crash, or anything else."""
    try:
        await subject.reply(pending)
    except Unmet as unmet:
        if subject.noise is None and subject.exit_code is not None and not subject.signalled:
            return False
        raise Unmet(f"of {of}: {unmet.reason}", SURVIVE) from None
    return True


async def _same(bench: Bench, name: str, value: Any) -> None:
    try:
        found = await bench.echo(value)
    except Unmet as unmet:
        raise Unmet(f"{name}: {unmet.reason}", unmet.fix) from None
    if not _equal(value, found):
        raise Unmet(f"{name}: {_quoted(value)} came back as {_quoted(found)}", _KEEP)


def _equal(sent: Any, found: Any) -> bool:
    """Whether they are the same JSON value. 1 and 1.0 are: many languages have one kind of number."""
    if isinstance(sent, bool) or isinstance(found, bool):
        return sent is found
    if isinstance(sent, int | float):
        return isinstance(found, int | float) and sent == found
    if isinstance(sent, list):
        return isinstance(found, list) and len(sent) == len(found) and all(map(_equal, sent, found))
    if isinstance(sent, dict):
        return (
            isinstance(found, dict)
            and sent.keys() == found.keys()
            and all(_equal(sent[key], found[key]) for key in sent)
        )
    return type(sent) is type(found) and bool(sent == found)


def _quoted(value: Any) -> str:
    return shown(codec.encode({"": value}).decode()[4:-1], 80)


def _named(process: psutil.Process) -> str:
    try:
        return f"{process.name()} (process {process.pid})"
    except psutil.Error:
        return f"process {process.pid}"
