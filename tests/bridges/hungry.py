"""A bridge that takes what it can get, one kind a command, until it is refused. Standard library only.

`limits` tells what the process may use. As root it becomes somebody else before it starts processes: for root their
number has no limit.
"""

import json
import os
import resource
import struct
import subprocess

hoard = []


def limits():
    names = ("RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_CPU", "RLIMIT_CORE")
    told = {name: resource.getrlimit(getattr(resource, name)) for name in names}
    return told | {"nice": os.nice(0), "pid": os.getpid()}


def memory():
    while True:
        hoard.append(bytearray(1024 * 1024))


def files():
    while True:
        hoard.append(os.open("/dev/null", os.O_RDONLY))


def processes():
    if os.geteuid() == 0:
        os.setuid(54321)
    while True:
        hoard.append(subprocess.Popen(["sleep", "1000"]))


def cpu():
    while True:
        pass


while len(header := os.read(0, 4)) == 4:
    request = json.loads(os.read(0, struct.unpack(">I", header)[0]))
    command = request["command"]
    result = None if command == "ping" else globals()[command]()
    payload = json.dumps({"id": request["id"], "success": True, "result": result}).encode()
    os.write(1, struct.pack(">I", len(payload)) + payload)
