"""The bridge: what an author registers commands with, and then serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

from bridge_protocol.messages import Request
from bridge_sdk.command import Command, commands_of
from bridge_sdk.freed_memory import keep_freed_memory
from bridge_sdk.parameters import SESSION_ID
from bridge_sdk.server import RUNNING, Server
from bridge_sdk.session import Session, SessionTable
from bridge_sdk.stdio import claim

MAX_CONCURRENCY = 1024

Function = TypeVar("Function", bound=Callable[..., Any])
SessionFunction = TypeVar("SessionFunction", bound=Callable[[Session], object])


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """The request a command is running for. `deadline` in Unix milliseconds, `attempt` counts from 1."""

    id: int
    command: str
    deadline: int | None
    attempt: int
    session_id: str | None
    traceparent: str | None


class ProgressSink(Protocol):
    """Who serves commands, as far as they speak of their progress."""

    def send_progress(self, request: Request, data: Any) -> None:
        """Say how far a request is. Raises ValueError for what cannot be said."""


class Bridge:
    """A set of commands, served over standard input and output.

    `instance`: an object whose public methods are the commands; more can be registered beside them. `session_class`: a
    class of which each session gets an object of its own, made without arguments at its first request; its public
    methods are commands too.

    `concurrency`: how many requests may be in flight, 1 … 1024. Asynchronous commands run together, up to that
    number. Synchronous commands run one at a time, in the main thread; further requests wait in the pipe, which
    saves the way there and back between two of them. Beside asynchronous commands a synchronous one holds up
    the others while it runs, like any blocking call on an event loop.
    """

    def __init__(
        self, instance: object | None = None, *, session_class: type | None = None, concurrency: int = 1
    ) -> None:
        if not 1 <= concurrency <= MAX_CONCURRENCY:
            raise ValueError(f"concurrency must be 1 … {MAX_CONCURRENCY}, not {concurrency}")
        self._concurrency = concurrency
        self._commands: dict[str, Command] = {}
        self._sessions = SessionTable(session_class)
        self._progress: ProgressSink | None = None  # who serves it
        if instance is not None:
            for command in commands_of(instance):
                self._add(command)

    def __repr__(self) -> str:
        return f"<Bridge {', '.join(self._commands) or 'without commands'}>"

    @overload
    def command(self, function: Function, /) -> Function: ...

    @overload
    def command(self, name: str, /) -> Callable[[Function], Function]: ...

    def command(self, function_or_name: Any, /) -> Any:
        """Register a function as a command: `@bridge.command`, or `@bridge.command("name")`.

        Its parameters are given by name and checked against their annotations (see bridge_sdk.parameters);
        what it returns must be JSON. A generator's values are sent as they come, as chunks, and what it returns is the
        result; an asynchronous one has none. Raises ValueError for a name that is taken or cannot be one, TypeError
        for a function that cannot be called by names alone.
        """
        if isinstance(function_or_name, str):

            def register(function: Function) -> Function:
                self._add(Command(function_or_name, function))
                return function

            return register
        self._add(Command(function_or_name.__name__, function_or_name))
        return function_or_name

    def implement(self, api: Callable[..., object], instance: object) -> None:
        """Register the methods of `api`, a class, typing.Protocol or not, as commands that `instance` carries out.

        What they are called with is converted as `api` annotates it, by pydantic: models, dates, enums, bytes. What
        does not fit is answered with `bad_request`, which names it, before anything runs. A method may be `async def`
        or a generator, whichever `api` has. Producers bind the same class. Raises TypeError for a class that cannot be
        one, and for what `instance` lacks; ValueError as `command` does.
        """
        from bridge_sdk.implementation import commands_of_api  # pydantic costs 100 ms

        for command in commands_of_api(api, instance):
            self._add(command)

    @property
    def request(self) -> RequestContext:
        """The request that is being served. Raises LookupError outside of a command."""
        request = RUNNING.get()
        session_id = request.args.get(SESSION_ID)
        return RequestContext(
            id=request.id,
            command=request.command,
            deadline=request.deadline,
            attempt=request.attempt,
            session_id=session_id if isinstance(session_id, str) else None,
            traceparent=request.traceparent,
        )

    @property
    def session(self) -> Session:
        """The session of the request that is being served. Raises LookupError if it is in none."""
        session_id = self.request.session_id
        if session_id is None:
            raise LookupError("this request is in no session")
        self._sessions.used = True
        return self._sessions.get(session_id)

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Tell whoever asked how far the request is that is being served: `done` of `total`, in any unit.

        Cheap, and lossy: of several in a short time only the last is passed on, to whoever wants to know. In any thread
        that runs in the command's context (asyncio.to_thread does). Raises LookupError outside of a command.
        """
        request = RUNNING.get()
        said = {"done": done, "total": total, "note": note}
        assert self._progress is not None
        self._progress.send_progress(request, {name: value for name, value in said.items() if value is not None})

    def session_opened(self, function: SessionFunction, /) -> SessionFunction:
        """Have `function` called with each new Session, when a command first asks for it. For use as a decorator."""
        self._sessions.used = True
        self._sessions.opened = function
        return function

    def session_closed(self, function: SessionFunction, /) -> SessionFunction:
        """Have `function` called with each Session that is over. Not if the process ends. For use as a decorator."""
        self._sessions.used = True
        self._sessions.closed = function
        return function

    def serve(self) -> None:
        """Serve requests in the main thread. Returns when standard input ends, or after a `shutdown`.

        If standard input ends while a command runs, the process ends at once, with exit code 0: whoever asked
        is gone. Claims standard input and output, where that has not happened yet. Raises ValueError outside the
        main thread.
        """
        stdio = claim()
        commands = self.commands()
        if any(command.asynchronous for command in commands.values()):
            from bridge_sdk.async_server import AsyncServer  # asyncio costs 30 ms and 7 MB

            server: Server = AsyncServer(commands, stdio, self._concurrency)
        else:
            server = Server(commands, stdio, self._concurrency)
        self.tell_progress(server)
        keep_freed_memory()
        server.serve()

    def tell_progress(self, sink: ProgressSink) -> None:
        """From now on `progress` goes there: to who serves the commands."""
        self._progress = sink

    def commands(self) -> Mapping[str, Command]:
        """All commands by name, those of sessions too. Raises ValueError if one of these has a name that is taken."""
        found = dict(self._commands)
        for command in self._sessions.commands(self._session_id):
            _add(found, command)
        return found

    def forget_sessions(self) -> None:
        """Drop all sessions, as the end of the process does: nobody is told."""
        self._sessions.clear()

    def _session_id(self) -> str | None:
        return self.request.session_id

    def _add(self, command: Command) -> None:
        _add(self._commands, command)


def _add(commands: dict[str, Command], command: Command) -> None:
    if command.name in commands:
        raise ValueError(f"there is a command {command.name!r} already")
    commands[command.name] = command
