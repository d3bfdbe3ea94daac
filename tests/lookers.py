"""Lists a service's dead letters again and again, each time in a process of its own, and kills some in mid-look.

    python lookers.py URL SERVICE LETTERS LOOKS KILLS

Each process is a fork that runs the command line, so that it starts in milliseconds. Ends with 0 when so many looks
saw all the letters, and so many others were killed (SIGKILL) while they held some.
"""

import os
import signal
import sys
import time

import broker.amqp
import quaybridge.dead_letters
import quaybridge.letter_record
import quaybridge.settings
from quaybridge.command_line import application

# Imported before the fork, so that no child has to.
PREPARED = (broker.amqp, quaybridge.dead_letters, quaybridge.letter_record, quaybridge.settings)

PATIENCE = 120  # seconds in all

url, service, letters, looks, kills = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])


def start() -> tuple[int, int]:
    """A process that lists, and the pipe it writes to."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(writing, 1)
        os.close(reading)
        application()(["dead", "list", service, "--json", "--broker", url], standalone_mode=True)
        os._exit(0)
    os.close(writing)
    return pid, reading


def whole() -> bool:
    """Whether a look saw every letter: just after a kill the broker may not have them all back."""
    pid, reading = start()
    with open(reading, "rb") as output:
        seen = sum(1 for _ in output)
    _, status = os.waitpid(pid, 0)
    return seen == letters and os.waitstatus_to_exitcode(status) == 0


def killed() -> bool:
    """Whether a look was killed while it held letters: it has written some, and its pipe has no room for the rest."""
    pid, reading = start()
    begun = os.read(reading, 1)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(reading)
    return bool(begun) and os.waitstatus_to_exitcode(status) == -signal.SIGKILL


end = time.monotonic() + PATIENCE
tries = 0
while looks or kills:
    if time.monotonic() > end:
        sys.exit(f"{looks} looks and {kills} kills are still to be done")
    if kills:
        kills -= killed()
    else:
        looks -= whole()
    tries += 1
print(f"{tries} tries")
