"""The reaper, a program of its own: it kills what a node or a bridge leaves behind, also when the node no longer can.

    python -I -S reaper_program.py QUAYBRIDGE_RUN=<the node's run id, see run_id.py>

Standard input comes from the node: a line `<run id>/<bridge>` says that this bridge has ended, `end` that the node
ends in order; the end of the input without it, that the node is dead. Standard output goes to the node: a line
`<run id>/<bridge> <count>` or `sweep <count>` says that nothing is left of it, and how many processes were killed.

Who is killed: the processes whose environment, as they were started, holds such a run id. First, once, those of
runs of this boot and PID namespace whose node is dead. Never the node or the reaper itself.

It imports nothing it can do without: a node has one, and waits for it to start.
"""

from __future__ import annotations

import os
import select
import signal
import sys

PAUSE = 10  # milliseconds between two scans
# A process in the middle of its exec shows no environment for a moment: one scan that finds nothing proves nothing.
QUIET = 2
# A node that was killed may have been starting bridges: a fork that had not come to its exec yet.
QUIET_AFTER_DEATH = 30
MOST_SCANS = 600  # about ten seconds: what a kill does not end by then, another will not either


class Hunt:
    """A run, or one bridge of a run, of which nothing may be left. Over after `quiet` scans that found nothing."""

    def __init__(self, name: bytes, run: bytes, quiet: int) -> None:
        self.name = name
        self.killed: set[int] = set()
        self._run = run
        self._quiet = quiet
        self._found_nothing = 0
        self._scans = 0

    def wants(self, run: bytes) -> bool:
        """Whether a process with this run id is to be killed."""
        return run == self._run or run.startswith(self._run + b"/")

    @property
    def exhausted(self) -> bool:
        """Whether more scans would change nothing."""
        return self._scans >= MOST_SCANS

    def scanned(self, found: bool) -> bool:
        """Count a scan; whether it was the last."""
        self._scans += 1
        self._found_nothing = 0 if found else self._found_nothing + 1
        return self._found_nothing >= self._quiet or self.exhausted


class Sweep(Hunt):
    """All runs of this boot and PID namespace whose node is dead."""

    def __init__(self, run: bytes) -> None:
        super().__init__(b"sweep", run, 1)
        self._here = run.split(b":")[:2]

    def wants(self, run: bytes) -> bool:
        """Whether the node of this run is dead. A number that is somebody else's by now has another start."""
        parts = run.split(b":")
        return parts[:2] == self._here and len(parts) == 5 and parts[2].isdigit() and not lives(parts[2], parts[3])


def lives(pid: bytes, start: bytes) -> bool:
    """Whether the process that was started then still runs; one that only waits to be reaped does not.

    In doubt it does: /proc may hide the processes of others from us (`hidepid`), kill does not.
    """
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    stat = read(b"/proc/" + pid + b"/stat").rpartition(b")")[2].split()
    return len(stat) <= 19 or (stat[19] == start and stat[0] not in (b"Z", b"X"))


def read(path: bytes) -> bytes:
    """The whole file; empty if it is gone, or not for us to read."""
    data = b""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return data
    try:
        while piece := os.read(descriptor, 65536):
            data += piece
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return data


def run_of(pid: int, variable: bytes) -> bytes:
    """The run id in the process's environment; empty if it has none."""
    environment = b"\0" + read(b"/proc/%d/environ" % pid)
    return environment.partition(b"\0" + variable + b"=")[2].partition(b"\0")[0]


def kill(pid: int, variable: bytes, hunt: Hunt) -> None:
    """Kill the process, if it is still the one that was seen: its number may be another's by now."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if hunt.wants(run_of(pid, variable)):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            hunt.killed.add(pid)
    except OSError:
        pass
    finally:
        os.close(process)


def scan(variable: bytes, spared: set[int], hunts: list[Hunt]) -> list[Hunt]:
    """Look at every process once, and kill those that are hunted; gives the hunts that go on."""
    found: set[Hunt] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in spared:
            continue
        run = run_of(int(name), variable)
        for hunt in hunts:
            if run and hunt.wants(run):
                kill(int(name), variable, hunt)
                found.add(hunt)
                break
    going_on = []
    for hunt in hunts:
        if not (hunt.scanned(hunt in found) and tell(hunt)):
            going_on.append(hunt)
    return going_on


def tell(hunt: Hunt) -> bool:
    """Report to the node; False to try again, if it has not read the earlier reports: it must not hold us up."""
    try:
        os.write(1, b"%b %d\n" % (hunt.name, len(hunt.killed)))
    except BlockingIOError:
        return hunt.exhausted
    except OSError:
        pass  # nobody is there
    return True


def main(argument: bytes) -> None:
    """Serve until the node has ended, and nothing of its run is left."""
    # What a terminal sends to all that run on it, and a service manager to all that it started, is not for us: our
    # work begins when the others have ended.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(1, False)
    variable, _, run = argument.partition(b"=")
    spared = {os.getpid(), int(run.split(b":")[2])}
    hunts: list[Hunt] = [Sweep(run)]
    told = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    serving = True
    while serving or hunts:
        if hunts:
            hunts = scan(variable, spared, hunts)
        # Once the node has ended there is nothing to wait for but the time between two scans.
        if not poll.poll(None if serving and not hunts else PAUSE):
            continue
        data = os.read(0, 65536)
        *lines, told = (told + data).split(b"\n")
        hunts += [Hunt(line, line, QUIET) for line in lines if line.startswith(run + b"/")]
        if not data or b"end" in lines:
            serving = False
            poll.unregister(0)
            hunts.append(Hunt(b"end", run, QUIET if data else QUIET_AFTER_DEATH))


if __name__ == "__main__":
    main(os.fsencode(sys.argv[1]))
