"""Sessions, as a bridge sees them: what it keeps for each, until the node says that it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bridge_protocol.messages import CLEANUP_SESSION
from bridge_sdk.command import Command, methods_of
from bridge_sdk.errors import ApplicationError


class Session:
    """One session. `state` is the author's own; `instance`: its object, where the bridge has a class for sessions."""

    __slots__ = ("id", "instance", "state")

    def __init__(self, id: str) -> None:
        self.id = id
        self.state: dict[str, Any] = {}
        self.instance: object | None = None

    def __repr__(self) -> str:
        return f"<Session {self.id!r} {len(self.state)} kept>"


class SessionTable:
    """The sessions of one bridge. The node bounds how many there are: it says when one is over."""

    def __init__(self, session_class: type | None) -> None:
        self.opened: Callable[[Session], object] | None = None
        self.closed: Callable[[Session], object] | None = None
        self.used = session_class is not None
        self._class = session_class
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __repr__(self) -> str:
        return f"<SessionTable {len(self)} sessions>"

    def get(self, id: str) -> Session:
        """The session of that id, opened if it is new."""
        session = self._sessions.get(id)
        if session is None:
            session = Session(id)
            if self._class is not None:
                session.instance = self._class()
            if self.opened is not None:
                self.opened(session)
            self._sessions[id] = session  # only if opening it went well
        return session

    def clear(self) -> None:
        """Drop them all, without a word."""
        self._sessions.clear()

    def cleanup(self, session_id: str) -> dict[str, Any]:
        """The command `cleanup_session`: that session is over."""
        session = self._sessions.pop(session_id, None)
        if session is not None and self.closed is not None:
            self.closed(session)
        return {"status": "closed", "known": session is not None}

    def commands(self, running: Callable[[], str | None]) -> Iterator[Command]:
        """What these add to a bridge's commands. `running` gives the session id of the request that is being served."""
        if self.used:
            yield Command(CLEANUP_SESSION, self.cleanup)
        if self._class is not None:
            for command in methods_of(self._class):
                yield self._of_session(command, running)

    def _of_session(self, command: Command, running: Callable[[], str | None]) -> Command:
        """A method of the class, called on the object of the session that asks."""

        def instance() -> object:
            session = running()
            if session is None:
                raise ApplicationError(f"{command.name} needs a session: send it in one")
            return self.get(session).instance

        def call(**arguments: Any) -> Any:
            return getattr(instance(), command.name)(**arguments)

        made = Command(command.name, call)
        made.asynchronous = command.asynchronous
        made.streams = command.streams
        made.parameters = command.parameters
        made.source = command.source
        return made
