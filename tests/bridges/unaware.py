"""A bridge that knows nothing of bytes, and has a field `binary` of its own in its replies. Standard library only."""

import json
import struct
import sys

source, sink = sys.stdin.buffer, sys.stdout.buffer
while len(header := source.read(4)) == 4:
    request = json.loads(source.read(struct.unpack(">I", header)[0]))
    reply = {"id": request["id"], "success": True, "result": request["args"], "binary": "$bytes"}
    payload = json.dumps(reply).encode()
    sink.write(struct.pack(">I", len(payload)) + payload)
    sink.flush()
