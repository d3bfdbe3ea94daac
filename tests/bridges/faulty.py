"""A bridge that conforms, but for one fault, named by its argument. Standard library only.

Without a fault it offers all that the conformance kit can look at: commands echo, sleep, count and log, several
requests at once, streams, cancel and shutdown; as `one_at_a_time` it takes requests ahead instead. Each fault is a line
or two, where its name stands.
"""

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time

fault = sys.argv[1] if len(sys.argv) > 1 else ""
FAULTS = (
    "prints_at_start",
    "refuses_the_handshake",
    "claims_nonsense",
    "ids_of_32_bits",
    "ids_are_floats",
    "rounds_fractions",
    "ascii_alone",
    "escapes_read_one_by_one",
    "fields_found_by_their_text",
    "cuts_at_64_kib",
    "header_in_one_read",
    "mixes_up_results",
    "chunks_from_one",
    "answers_cancels",
    "forgets_early_cancels",
    "ignores_cancels",
    "begins_before_its_turn",
    "answers_out_of_turn",
    "keeps_what_is_asked_back",
    "calls_it_cancelled",
    "gives_back_what_it_has_begun",
    "remembers_what_was_asked_back",
    "takes_ahead_and_cannot_cancel",
    "keeps_bytes_to_itself",
    "finds_bytes_that_are_none",
    "loses_stderr",
    "floods_stderr",
    "dies_of_unknown_commands",
    "silent_on_unknown_commands",
    "silent_on_malformed_args",
    "crashes_on_malformed_args",
    "silent_on_unreadable_frames",
    "ignores_the_end",
    "ignores_the_end_at_work",
    "ignores_shutdown",
    "ignores_sigterm",
    "answers_twice",
    "speaks_after_its_reply",
    "prints_at_its_end",
    "ends_in_half_a_frame",
    "leaves_a_child",
)
ONE_AT_A_TIME = FAULTS[FAULTS.index("begins_before_its_turn") : FAULTS.index("keeps_bytes_to_itself")]
COMMANDS = ["echo", "sleep", "count", "log"]
one_at_a_time = fault == "one_at_a_time" or fault in ONE_AT_A_TIME
data = bytearray()
sleeping = {}  # id → when it is over, and for how long it was
cancelled = set()
waiting = []  # payloads, in order, behind the one that sleeps


def write(message):
    payload = json.dumps(message, ensure_ascii=False).encode()
    frame = struct.pack(">I", len(payload)) + payload
    while frame:
        frame = frame[os.write(1, frame) :]


def answer(request_id, **rest):
    if fault == "ids_of_32_bits" and request_id is not None:
        request_id &= 0xFFFFFFFF
    if fault == "ids_are_floats" and request_id is not None and request_id > 2**32:
        request_id = float(request_id)
    write({"id": request_id, **rest})
    if fault == "answers_twice" and request_id == 7:
        write({"id": request_id, **rest})
    if fault == "speaks_after_its_reply" and request_id == 7:
        write({"id": request_id, "event": "progress", "data": "done"})


def result(request_id, value):
    answer(request_id, success=True, result=value)


def failure(request_id, error):
    answer(request_id, success=False, error=error)


def spoil(value, payload):
    """What a fault makes of a value that is echoed."""
    text = json.dumps(value, ensure_ascii=False)
    if fault == "rounds_fractions" and isinstance(value.get("value"), list):
        return {"value": [round(item, 5) if isinstance(item, float) else item for item in value["value"]]}
    if fault == "ascii_alone":
        return json.loads(text.encode("ascii", "replace"))
    if fault == "escapes_read_one_by_one" and b"\\ud83d" in payload:
        return {"value": "??"}
    if fault == "cuts_at_64_kib" and len(text) > 65536:
        return {"value": value["value"][:65536]}
    return value


def echo(request, value):
    """Whatever stands for bytes goes back as it came."""
    key = request.get("binary")
    if fault == "finds_bytes_that_are_none" and key is None and '{"$bytes"' in json.dumps(value):
        key = "$bytes"
    if key is None or fault == "keeps_bytes_to_itself":
        result(request["id"], value)
    elif request.get("takes_binary"):
        answer(request["id"], success=True, result=value, binary=key)
    else:
        failure(request["id"], "bytes are not taken")


def serve(payload):
    try:
        request = json.loads(payload)
        request_id, command, args = request["id"], request["command"], request.get("args") or {}
    except (ValueError, KeyError):
        if fault != "silent_on_unreadable_frames":
            failure(None, "cannot read the frame")
        return
    if one_at_a_time and sleeping and command != "cancel" and fault != "begins_before_its_turn":
        waiting.insert(0 if fault == "answers_out_of_turn" else len(waiting), payload)
        return
    if fault == "fields_found_by_their_text" and b'"command":"' not in payload:
        failure(request_id, "no command")
    elif not isinstance(args, dict):
        if fault == "crashes_on_malformed_args":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault != "silent_on_malformed_args":
            failure(request_id, "args must be an object")
    elif command == "ping":
        if fault == "refuses_the_handshake":
            failure(request_id, "no GPU here")
            return
        concurrency = 0 if fault == "claims_nonsense" else 1 if one_at_a_time else 4
        claims = {"concurrency": concurrency, "cancel": True, "stream": True, "shutdown": True, "commands": COMMANDS}
        claims["ahead"] = 4 if one_at_a_time else 0
        claims["binary"] = True
        claims["cancel"] = fault != "takes_ahead_and_cannot_cancel"
        result(request_id, {"status": "ok", "capabilities": claims})
    elif command == "cancel":
        if args.get("unbegun"):
            give_back(args.get("id"))
        else:
            cancel(request_id, args.get("id"))
    elif command == "shutdown":
        if fault != "ignores_shutdown":
            result(request_id, {"status": "ended"})
            sys.exit(0)
    elif request_id in cancelled:
        cancelled.remove(request_id)
        failure(request_id, "cancelled")
    elif command == "echo":
        echo(request, spoil(args, payload))
    elif command == "sleep":
        sleeping[request_id] = (time.monotonic() + args["seconds"], args["seconds"])
    elif command == "count":
        for seq in range(args["to"]):
            answer(request_id, event="chunk", seq=seq + (fault == "chunks_from_one"), data=seq)
        result(request_id, args["to"])
    elif command == "log":
        left = 0 if fault == "loses_stderr" else args["bytes"]
        while left > 0:
            left -= os.write(2, b"x" * min(left - 1, 1023) + b"\n")
        result(request_id, args["bytes"])
    elif fault == "dies_of_unknown_commands":
        sys.exit("KeyError: " + command)
    elif fault != "silent_on_unknown_commands":
        failure(request_id, "unknown command: " + command)


def cancel(request_id, wanted):
    if fault == "answers_cancels":
        result(request_id, None)
    if wanted in sleeping:
        if fault != "ignores_cancels":
            del sleeping[wanted]
            failure(wanted, "cancelled")
    elif fault != "forgets_early_cancels":
        cancelled.add(wanted)


def give_back(wanted):
    found = [payload for payload in waiting if json.loads(payload)["id"] == wanted]
    if fault == "gives_back_what_it_has_begun" and sleeping.pop(wanted, None):
        answer(wanted, success=False, error="given_back", error_info={"type": "given_back"})
    if fault == "remembers_what_was_asked_back" and not found:
        cancelled.add(wanted)
    if found and fault != "keeps_what_is_asked_back":
        waiting.remove(found[0])
        how = "cancelled" if fault == "calls_it_cancelled" else "given_back"
        answer(wanted, success=False, error=how, error_info={"type": how})


def wake():
    for request_id, (due, seconds) in list(sleeping.items()):
        if due <= time.monotonic():
            del sleeping[request_id]
            result(request_id, seconds)
    while waiting and not sleeping:
        serve(waiting.pop(0))


def end():
    if fault == "ignores_the_end" or (fault == "ignores_the_end_at_work" and sleeping):
        while True:
            signal.pause()
    if fault == "prints_at_its_end":
        os.write(1, b"Goodbye!\n")
    if fault == "ends_in_half_a_frame":
        os.write(1, b"\0\0\0\x10{")
    sys.exit(0)


def frames():
    """The payloads that are whole."""
    while len(data) >= 4:
        (size,) = struct.unpack(">I", data[:4])
        if len(data) < 4 + size:
            return
        payload = bytes(data[4 : 4 + size])
        del data[: 4 + size]
        yield payload


if fault and fault not in (*FAULTS, "one_at_a_time"):
    sys.exit("no such fault: " + fault)
if fault == "prints_at_start":
    os.write(1, b"Loading model weights...\n")
if fault == "floods_stderr":
    for _ in range(6 * 1024):
        os.write(2, b"x" * 1023 + b"\n")
if fault == "ignores_sigterm":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if fault == "leaves_a_child":
    subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)
while True:
    wait = min((due for due, _ in sleeping.values()), default=None)
    if select.select([0], [], [], None if wait is None else max(0.0, wait - time.monotonic()))[0]:
        read = os.read(0, 65536)
        if not read:
            end()
        if fault == "header_in_one_read" and not data and len(read) < 4:
            read = read.rjust(4, b"\0")
        data += read
        arrived = list(frames())
        if fault == "mixes_up_results" and len(arrived) > 2:
            arrived = [arrived[0].replace(b'"value":0', b'"value":1'), *arrived[1:]]
        for payload in arrived:
            serve(payload)
    wake()
