"""A bridge in a language of its own, as far as we know: it never heard of quaybridge. Standard library only."""

import json
import struct
import sys
import time

source, sink = sys.stdin.buffer, sys.stdout.buffer
while len(header := source.read(4)) == 4:
    request = json.loads(source.read(struct.unpack(">I", header)[0]))
    command, args = request["command"], request["args"]
    if command == "ping":
        result = {"status": "ok", "bridge_type": "foreign", "echo": args}
    elif command == "echo":
        result = {"status": "ok", "echoed": args}
    else:  # success, with an error inside, as DSPex's generic bridge has it
        result = {"status": "error", "error": f"Unknown command: {command}"}
    reply = {"id": request["id"], "success": True, "result": result, "timestamp": time.time()}
    payload = json.dumps(reply).encode()
    sink.write(struct.pack(">I", len(payload)) + payload)
    sink.flush()
