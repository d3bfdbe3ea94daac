"""The bench: where a bridge is put to the test. It starts subjects, remembers them, and knows how to ask for what.

A subject serves check after check; one that broke is replaced by a new one, so that a check is not charged with what
an earlier one found.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import psutil

from bridge_protocol.handshake import Capabilities
from bridge_protocol.messages import Failure, Result
from quaybridge.conformance.report import CannotStart, NotClaimed, Unmet
from quaybridge.conformance.subject import Subject, descendants, shown

# What a bridge may have so that every check can be made: the command's role, and its args.
ROLES: Final = {
    "echo": "gives back its args",
    "sleep": "waits for args.seconds",
    "count": "streams the numbers from 0 to args.to − 1 as chunks",
    "log": "writes args.bytes bytes to stderr",
}
_MARKER = {"value": "quaybridge: give this back"}


class Bench:
    """`commands`: which command plays a role, where that has another name; `timeout` in seconds, for each wait."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], commands: Mapping[str, str], timeout: float
    ) -> None:
        self.command = command
        self.timeout = timeout
        self.capabilities = Capabilities()
        self.subjects: list[Subject] = []  # all there were
        self._environment = environment
        self._commands = commands
        self._echo: tuple[str, str | None] | None = None  # the command, and the key of its result that holds the args
        self._echo_sought = False

    def __repr__(self) -> str:
        return f"<Bench {len(self.subjects)} subjects>"

    async def new(self) -> Subject:
        """A new subject, greeted. Raises CannotStart, or Unmet."""
        try:
            subject = await Subject.started(self.command, self._environment, self.timeout)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise CannotStart(f"{self.command[0]} cannot be started: {reason}") from None
        self.subjects.append(subject)
        await subject.greet()
        self.capabilities = subject.capabilities
        return subject

    async def subject(self) -> Subject:
        """The subject at hand, or a new one if that broke. Raises as `new` does."""
        if self.subjects and self.subjects[-1].alive:
            return self.subjects[-1]
        return await self.new()

    async def discard(self) -> None:
        """Do away with the subject at hand: the next check begins with a new one."""
        if self.subjects:
            await self.subjects[-1].close()

    async def close(self) -> None:
        """Leave nothing behind."""
        await asyncio.gather(*(subject.close() for subject in self.subjects))
        for process in descendants(self.subjects):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def command_for(self, role: str) -> str:
        """The command that plays `role`. Raises NotClaimed unless the bridge lists it, or it was named."""
        if role in self._commands:
            return self._commands[role]
        if role not in self.capabilities.commands:
            raise NotClaimed(f"shown by a command {role!r} that {ROLES[role]}: list one, or give --command {role}=NAME")
        return role

    async def echo(self, value: Any) -> Any:
        """What comes back of `value` from the bridge. Raises NotClaimed if nothing of it echoes, or Unmet."""
        command, key = await self.echo_command()
        subject = await self.subject()
        return self.echoed(await subject.call(command, {"value": value}), key)

    def echoed(self, said: Result | Failure, key: str | None) -> Any:
        """The value in a reply of the command that echoes. Raises Unmet."""
        if isinstance(said, Failure):
            raise Unmet(f"it was refused: {shown(said.error)}", "accept every JSON value that fits into a frame")
        args = said.result if key is None else said.result.get(key) if isinstance(said.result, dict) else None
        if not isinstance(args, dict) or "value" not in args:
            raise Unmet("the args did not come back", "give back the args as they came")
        return args["value"]

    async def echo_command(self) -> tuple[str, str | None]:
        """The command that echoes, and the key of its result that holds the args; None: they are the result.

        Looked for once: a command named `echo`, or the ping of older bridges. Raises as `echo` does.
        """
        if not self._echo_sought:
            named = self._commands.get("echo")
            subject = await self.subject()
            for command in [named] if named else ["echo", "ping"]:
                said = await subject.call(command, _MARKER)
                if isinstance(said, Result) and (found := _keys_of(said.result)):
                    self._echo = (command, found[0])
                    break
            if named and self._echo is None:
                raise Unmet(f"the command {named!r} does not give back its args", "name one that does")
            self._echo_sought = True
        if self._echo is None:
            raise NotClaimed(f"shown by a command 'echo' that {ROLES['echo']}: add one, or give --command echo=NAME")
        return self._echo


def _keys_of(result: Any) -> list[str | None]:
    """Where in `result` the marker is: under a key, or (None) it is the result."""
    if result == _MARKER:
        return [None]
    return [key for key, value in result.items() if value == _MARKER] if isinstance(result, dict) else []
