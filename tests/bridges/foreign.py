"""A bridge in a language of its own, as far as we know: it never heard of quaybridge. Standard library only.

Its replies are those that bridges of older projects write: with a number for a timestamp, with no timestamp, with
fields of their own, with a text for an error, or with success and an error inside.
"""

import json
import struct
import sys
import time

source, sink = sys.stdin.buffer, sys.stdout.buffer
print("foreign bridge started", file=sys.stderr)
while len(header := source.read(4)) == 4:
    request = json.loads(source.read(struct.unpack(">I", header)[0]))
    command, args = request["command"], request["args"]
    print(f"serving {command}", file=sys.stderr)
    reply = {"id": request["id"], "success": True, "timestamp": time.time()}
    if command == "ping":
        reply["result"] = {"status": "ok", "bridge_type": "foreign", "echo": args}
    elif command == "echo":
        reply["result"] = {"status": "ok", "echoed": args}
    elif command == "bare":
        reply = {"id": request["id"], "success": True, "result": args}
    elif command == "talkative":
        own = {"worker_id": "w1", "command": command, "duration_ms": 1.5, "metadata": {"pid": [1, None]}}
        reply = {**own, **reply, "result": args, "error": None}
    elif command == "fail":
        reply = {"id": request["id"], "success": False, "error": "no such program: p1", "timestamp": 1714564800}
    else:  # success, with an error inside, as DSPex's generic bridge has it
        reply["result"] = {"status": "error", "error": f"Unknown command: {command}"}
    payload = json.dumps(reply).encode()
    sink.write(struct.pack(">I", len(payload)) + payload)
    sink.flush()
print("foreign bridge ended", file=sys.stderr)
