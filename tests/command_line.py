"""The command line as a user runs it: a process of its own, and what it said."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

ECHO = f"{sys.executable} -m examples.echo"
PATIENCE = 60.0  # seconds for what takes one on an idle machine


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


class Running:
    """A command that runs; the lines of its stderr are kept as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def said(self, pattern: str) -> re.Match[str]:
        """Wait until a further line of stderr matches."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while line := await self.process.stderr.readline():
                self.lines.append(line.decode())
                if found := re.search(pattern, self.lines[-1]):
                    return found
        raise AssertionError(f"it never said {pattern!r}, but\n{''.join(self.lines)}")

    async def ended(self, stdin: bytes = b"") -> Ended:
        """Give it what is left of its stdin, and wait for its end."""
        async with asyncio.timeout(PATIENCE):
            out, err = await self.process.communicate(stdin)
        assert self.process.returncode is not None
        return Ended(self.process.returncode, out.decode(), "".join(self.lines) + err.decode())


@asynccontextmanager
async def running(*arguments: str, environ: Mapping[str, str] | None = None) -> AsyncIterator[Running]:
    """`quaybridge` with these arguments, without the configuration of whoever runs the tests; killed if it is left."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QUAYBRIDGE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quaybridge", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**inherited, "COLUMNS": "100", "TERM": "dumb", **(environ or {})},
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
        # What it started may hold its stderr a moment longer: a transport that is left to that outlives its loop.
        await process.communicate()


async def run(*arguments: str, environ: Mapping[str, str] | None = None, stdin: bytes = b"") -> Ended:
    """Run it to its end."""
    async with running(*arguments, environ=environ) as command:
        return await command.ended(stdin)


async def shell(line: str, environ: Mapping[str, str] | None = None, stdin: bytes = b"") -> Ended:
    """Run a line of sh, in which `quaybridge` is ours, to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QUAYBRIDGE_")}
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'quaybridge() {{ "$PYTHON" -m quaybridge "$@"; }}\n{line}'),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**inherited, "PYTHON": sys.executable, "COLUMNS": "100", "TERM": "dumb", **(environ or {})},
    )
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())
