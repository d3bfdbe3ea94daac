"""A bridge that breeds: `python breeder.py TOKEN`, a number by which its descendants can be told from all others.

Before its handshake it has one descendant for every way to get away; the end of its input it does not notice.
Commands: `die`, `recycle` (reply, and end when asked to), `echo`. Standard library only.
"""

import json
import os
import signal
import struct
import subprocess
import sys

# sleep adds up what it is given, so that the number does no harm there.
SLEEP = ("sleep", "1000", sys.argv[1])
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def breed():
    subprocess.Popen(SLEEP, **QUIET)  # in the bridge's own group
    subprocess.Popen(SLEEP)  # holds all three of its pipes
    subprocess.Popen(SLEEP, start_new_session=True, **QUIET)
    if os.fork() == 0:  # a daemon, as daemons are made
        os.setsid()
        subprocess.Popen(SLEEP, **QUIET)
        os._exit(0)
    os.wait()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    subprocess.Popen(SLEEP, start_new_session=True)  # deaf, and holds the pipes


def read(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            while not ending:
                signal.pause()
            os._exit(0)
        data += piece
    return data


ending = False
breed()
while True:
    request = json.loads(read(struct.unpack(">I", read(4))[0]))
    if request["command"] == "die":
        os._exit(3)
    ending = request["command"] == "recycle"
    reply = {"id": request["id"], "success": True, "result": request["args"], "recycle": ending}
    payload = json.dumps(reply).encode()
    os.write(1, struct.pack(">I", len(payload)) + payload)
