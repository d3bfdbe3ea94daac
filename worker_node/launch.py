"""How a bridge's program is started: under its limits, and so that the kernel ends it with the node.

    setpriv --pdeathsig KILL -- nice -n 5 -- prlimit --core=0 … -- PROGRAM ARGUMENT…

Each of these does its part and then becomes the next: the process, and its id, is the bridge's own all the way.
They are util-linux's and coreutils' own programs. Code of ours between fork and exec (`preexec_fn`) may deadlock in
a process with threads, and limits set from outside come too late for what a program does first: what it forks by
then would be free of them for ever.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping

from worker_node.settings import LimitSettings

# Between SIGXCPU and SIGKILL, in seconds of CPU time, for a program that handles the first.
CPU_GRACE = 5


class Launcher:
    """Wraps commands in what this host has. `path`: where to look for the tools, as PATH has it."""

    def __init__(self, path: str | None) -> None:
        self._nice = shutil.which("nice", path=path)
        self._prlimit = shutil.which("prlimit", path=path)
        self._setpriv = _with_death_signal(shutil.which("setpriv", path=path))

    def __repr__(self) -> str:
        return f"<Launcher setpriv={self._setpriv} prlimit={self._prlimit} nice={self._nice}>"

    @property
    def lacking(self) -> list[str]:
        """What this host has not, in words for the log."""
        lacks = {
            "setpriv --pdeathsig (bridges end with a killed node a moment later)": self._setpriv,
            "prlimit (bridges may dump core)": self._prlimit,
        }
        return [name for name, tool in lacks.items() if tool is None]

    @property
    def ends_with(self) -> int | None:
        """The process that a bridge ends with by the kernel's hand: this one, or none."""
        return None if self._setpriv is None else os.getpid()

    def command(
        self, command: tuple[str, ...], limits: LimitSettings, environment: Mapping[str, str], directory: str | None
    ) -> tuple[str, ...]:
        """What to execute for `command` to run under `limits`.

        Raises the OSError that executing `command` itself would: behind the tools it would only be a line on
        stderr. Also where limits are set and this host has not what sets them.
        """
        _check(command[0], environment, directory)
        wrapped: list[str] = []
        if self._setpriv is not None:
            wrapped += [self._setpriv, "--pdeathsig", "KILL", "--"]
        if limits.nice:
            wrapped += [_needed(self._nice, "nice"), "-n", str(limits.nice), "--"]
        options = _prlimit_options(limits)
        if options or self._prlimit is not None:
            wrapped += [_needed(self._prlimit, "prlimit"), "--core=0", *options, "--"]
        return (*wrapped, *command)


def _prlimit_options(limits: LimitSettings) -> list[str]:
    options = []
    if limits.memory is not None:
        options.append(f"--as={limits.memory}")
    if limits.open_files is not None:
        options.append(f"--nofile={limits.open_files}")
    if limits.processes is not None:
        options.append(f"--nproc={limits.processes}")
    if limits.cpu_time is not None:
        # With the two alike the kernel sends SIGKILL alone, and nothing would say what the bridge died of.
        options.append(f"--cpu={limits.cpu_time}:{limits.cpu_time + CPU_GRACE}")
    return options


def _with_death_signal(setpriv: str | None) -> str | None:
    """`setpriv` if it can do it: busybox has one of its own that knows no --pdeathsig."""
    if setpriv is None:
        return None
    try:
        tried = subprocess.run(
            (setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", ":"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return None
    return setpriv if tried.returncode == 0 else None


def _needed(tool: str | None, name: str) -> str:
    if tool is None:
        raise FileNotFoundError(errno.ENOENT, "not found, and limits are set: install util-linux and coreutils", name)
    return tool


def _check(program: str, environment: Mapping[str, str], directory: str | None) -> None:
    """Raise the OSError of a program that execvp would not find, or not be allowed to execute."""
    if directory is not None and not os.path.isdir(directory):
        return  # that is met first, and said by who changes to it
    problem = errno.ENOENT
    for folder in [""] if os.sep in program else os.get_exec_path(environment):
        path = os.path.join(directory or "", folder, program)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return
        if os.path.exists(path):
            problem = errno.EACCES
    raise OSError(problem, os.strerror(problem), program)
