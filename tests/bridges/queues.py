"""A bridge that takes requests ahead: `python queues.py MODE [FILE]`. Standard library only.

It writes a line to FILE for each request that it begins. Its mode is how it goes wrong when it is asked to `misbehave`;
otherwise it answers each request with its process id, in turn, and gives back what it is asked for.
"""

import json
import os
import select
import struct
import sys

mode = sys.argv[1]
data = bytearray()
waiting = []


def write(message):
    payload = json.dumps(message).encode()
    os.write(1, struct.pack(">I", len(payload)) + payload)


def read():
    piece = os.read(0, 65536)
    if not piece:
        sys.exit(0)
    data.extend(piece)
    while len(data) >= 4 and len(data) >= 4 + (size := struct.unpack(">I", data[:4])[0]):
        request = json.loads(bytes(data[4 : 4 + size]))
        del data[: 4 + size]
        if request["command"] != "cancel":
            waiting.append(request)
        elif request["args"].get("unbegun"):
            for each in [each for each in waiting if each["id"] == request["args"]["id"]]:
                waiting.remove(each)
                give_back(each)


def result(request, value, **rest):
    write({"id": request["id"], "success": True, "result": value, **rest})


def give_back(request):
    write({"id": request["id"], "success": False, "error": "given_back", "error_info": {"type": "given_back"}})


def serve(request):
    if request["id"] == 0:
        result(request, {"capabilities": {"ahead": 16, "cancel": True}})
        return
    if len(sys.argv) > 2:
        with open(sys.argv[2], "a") as file:
            file.write(f"{request['args'].get('number')} {request.get('attempt', 1)}\n")
    if request["command"] == "misbehave" and request.get("attempt", 1) == 1:
        if mode == "prints":  # and goes on as if nothing had happened
            os.write(1, b"Loading model weights...\n")
        elif mode == "answers_out_of_turn":
            while not waiting:
                read()
            result(waiting.pop(0), os.getpid())
        elif mode == "gives_back_unasked":
            give_back(request)
            return
        elif mode == "wants_to_go":
            result(request, os.getpid(), recycle=True)
            while select.select([0], [], [], 0.5)[0]:  # until all that waits is asked back
                read()
            return
    result(request, os.getpid())


while True:
    if not waiting:
        read()
    while waiting:
        serve(waiting.pop(0))
