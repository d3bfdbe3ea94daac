"""A bridge that goes wrong in one way: `python misbehave.py MODE [ARGUMENT]`. Standard library only.

The modes of `at_start` go wrong before or in the handshake; the others serve `ping`, `echo`, `pid` and `look` (at
their environment and descriptors) properly until a request's command is `misbehave`.
"""

import json
import os
import resource
import shlex
import signal
import struct
import subprocess
import sys
import time

mode = sys.argv[1]
argument = sys.argv[2] if len(sys.argv) > 2 else ""
hoard = []


def receive():
    header = read(4)
    return json.loads(read(struct.unpack(">I", header)[0]))


def read(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return data


def frame(payload):
    return struct.pack(">I", len(payload)) + payload


def reply(request_id, result):
    return frame(json.dumps({"id": request_id, "success": True, "result": result}).encode())


def write(data):
    while data:
        data = data[os.write(1, data) :]


def stall():
    while True:
        signal.pause()


def at_start():
    if mode == "exit_at_start":
        sys.exit("cannot find the model file")  # on stderr; exit code 1
    elif mode == "exit_zero_at_start":
        sys.exit(0)
    elif mode == "text_before_handshake":
        write(b"Loading model weights...\n")
    elif mode == "never_ready":
        stall()
    elif mode == "refuses_handshake":
        request = receive()
        write(frame(json.dumps({"id": request["id"], "success": False, "error": "no GPU here"}).encode()))
        stall()
    elif mode == "handshake_not_json":
        receive()
        write(frame(b"{hello}"))
        stall()
    elif mode == "handshake_nonsense":
        write(reply(receive()["id"], {"capabilities": {"concurrency": 0}}))
        stall()
    elif mode == "closes_stdout_at_start":
        os.close(1)
        stall()
    elif mode == "half_a_handshake":
        write(reply(receive()["id"], {"status": "ok"})[:-1])
        stall()
    elif mode == "slow_start":
        time.sleep(float(argument or "1"))


def misbehave(request_id):
    good = reply(request_id, "as if nothing happened")
    match mode:
        case "hang":
            stall()
        case "hang_ignoring_sigterm":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            stall()
        case "stops_itself":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "segfault":
            import ctypes

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            ctypes.string_at(0)
        case "exit0_mid_request":
            os._exit(0)
        case "exit1_mid_request":
            os.write(2, b"last words\n")
            os._exit(1)
        case "kill_self":
            os.kill(os.getpid(), signal.SIGKILL)
        case "garbage_on_stdout":
            write(b"\xde\xad\xbe\xef" * 16)
            stall()
        case "print_then_reply":
            write(b"Traceback (most recent call last): not really\n" + good)
        case "stderr_merged":
            os.dup2(1, 2)
            raise RuntimeError("this traceback lands on stdout")
        case "frame_too_large":
            write(b"\xff\xff\xff\xff")
            stall()
        case "reply_over_limit":
            write(reply(request_id, "x" * int(argument)))
            stall()
        case "half_frame_then_stall":
            write(good[: len(good) // 2])
            stall()
        case "half_header_then_stall":
            write(good[:3])
            stall()
        case "trickle":  # a good reply, a byte at a time, for ever
            for byte in reply(request_id, "x" * 100_000):
                write(bytes([byte]))
                time.sleep(0.02)
        case "length_counts_itself":  # four too many
            write(struct.pack(">I", len(good)) + good[4:])
            stall()
        case "warns":  # on stderr, wherever that leads
            os.write(2, b"UserWarning: the model is old\n")
            write(good)
        case "raises":
            raise RuntimeError("the model is gone")
        case "json_without_a_length":
            write(good[4:] + b"\n")
        case "little_endian":
            write(struct.pack("<I", len(good) - 4) + good[4:])
        case "truncated_then_exit":
            write(good[:-1])
            os._exit(0)
        case "wrong_id":
            write(reply(request_id + 1, "for somebody else"))
        case "null_id":
            write(frame(b'{"id": null, "success": false, "error": "cannot read that\\u001b[2J"}'))
        case "reply_then_print":
            write(good + b"Warning: text that nobody asked for\n")
            stall()
        case "recycle":
            write(frame(json.dumps({"id": request_id, "success": True, "result": 1, "recycle": True}).encode()))
        case "two_replies":
            write(good + good)
        case "empty_frame":
            write(frame(b""))
        case "not_json":
            write(frame(b"{this is not JSON}"))
        case "not_an_object":
            write(frame(b"[1, 2, 3]"))
        case "no_success":
            write(frame(b'{"id": %d, "result": 1}' % request_id))
        case "invalid_utf8_reply":
            write(frame(b'{"id": %d, "success": true, "result": "\xff\xfe"}' % request_id))
        case "closes_stdout":
            os.close(1)
            stall()
        case "closes_stdin":
            os.close(0)
            write(good)
            stall()
        case "does_not_read":
            write(good)
            stall()
        case "stderr_flood":
            left = int(argument or str(64 * 1024 * 1024))
            while left > 0:
                left -= os.write(2, b"x" * min(left, 65536))
            write(good)
        case "stderr_flood_binary":  # neither UTF-8 nor a line
            noise = b"\xff\x1b[31m\r\x00\xe2\x82" * 8192
            for _ in range(int(argument) // len(noise)):
                os.write(2, noise)
            write(good)
        case "stderr_flood_lines":
            for _ in range(int(argument) // 65536):
                os.write(2, b"retrying\n" * 7281 + b"\x1b[2J..\n")
            write(good)
        case "stderr_binary":
            os.write(2, bytes(range(256)) + b"\x1b[31mred\x1b[0m\r\nforged log line\n")
            write(good)
        case "forks_sleep":  # it inherits stdout, and keeps it open when the bridge is gone
            write(reply(request_id, subprocess.Popen(["sleep", "1000"]).pid))
        case "forks_sleep_and_dies":
            subprocess.Popen(["sleep", "1000"])
            os._exit(3)
        case "forks_setsid_sleep":
            write(reply(request_id, subprocess.Popen(["sleep", "1000"], start_new_session=True).pid))
        case "forks":  # a program of the test's choice
            write(reply(request_id, subprocess.Popen(shlex.split(argument)).pid))
        case "leak_and_hang":
            hoard.append(b"x" * (int(argument) * 1024 * 1024))
            stall()
        case "leak":
            hoard.append(b"x" * (int(argument or "10") * 1024 * 1024))
            write(reply(request_id, len(hoard)))
        case _:
            sys.exit(f"no such mode: {mode}")


at_start()
while True:
    request = receive()
    if request["command"] == "ping":
        write(reply(request["id"], {"status": "ok"}))
    elif request["command"] == "echo":
        write(reply(request["id"], request["args"]))
    elif request["command"] == "pid":
        write(reply(request["id"], os.getpid()))
    elif request["command"] == "look":
        write(reply(request["id"], {"environ": dict(os.environ), "descriptors": os.listdir("/proc/self/fd")}))
    elif request["command"] == "misbehave":
        misbehave(request["id"])
