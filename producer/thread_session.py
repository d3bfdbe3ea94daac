"""A session for any thread."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from producer.handle import Handle
from producer.loop_thread import FORKED, Run
from producer.options import DEFAULT_TIMEOUT, SessionCallOptions, SessionStreamOptions, session_stream_options
from producer.outcome import Outcome
from producer.reply import Reply
from producer.session import AsyncSession
from producer.thread_stream import Stream

A = TypeVar("A")


class Session:
    """A session for any thread: AsyncSession, on its producer's loop. Made by Producer.session.

    `call` and `submit` of several threads are in line in the order in which they came.
    """

    def __init__(self, run: Run, inner: AsyncSession) -> None:
        self._run = run
        self._own = inner
        self._process = os.getpid()

    def __repr__(self) -> str:
        return repr(self._own).replace("AsyncSession", "Session", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _inner(self) -> AsyncSession:
        if self._process != os.getpid():
            raise RuntimeError(f"the session {self._own.id!r}: {FORKED}")
        return self._own

    @property
    def id(self) -> str:
        """Its id."""
        return self._own.id

    @property
    def epoch(self) -> str | None:
        """Names the live bridge it has, if it has one."""
        return self._own.epoch

    def call(self, command: str, args: Mapping[str, Any] | None = None, **options: Unpack[SessionCallOptions]) -> Reply:
        """Send a request, after those before it, and wait for its reply: see AsyncSession.call."""
        return self._run(self._inner.call(command, args, **options))

    def bind(self, api: Callable[..., A], **options: Unpack[SessionCallOptions]) -> A:
        """An object with the methods of `api`, called in this session: see Producer.bind."""
        from producer.bound import bind  # pydantic costs 100 ms

        inner = self._inner
        where = f"session {inner.id} of {inner.service}"
        of_stream = session_stream_options(options)
        return bind(
            api,
            where,
            lambda command, args: self.call(command, args, **options),
            lambda command, args: self.stream(command, args, **of_stream),
        )

    def submit(
        self, command: str, args: Mapping[str, Any] | None = None, **options: Unpack[SessionCallOptions]
    ) -> Outcome:
        """Put a request in line; its outcome, as of Producer.submit. Waits while the line is full."""

        async def submit() -> Outcome:
            handle = await self._inner.submit(command, args, **options)
            loop = asyncio.get_running_loop()
            outcome = Outcome(self._inner.service, handle.message_id, loop, cancel_until)
            outcome.follow(handle)
            handles.append(handle)
            return outcome

        handles: list[Handle] = []

        def cancel_until(outcome: Outcome, timeout: float | None) -> bool:
            return self._run(handles[0].cancel(timeout=timeout))

        return self._run(submit())

    def stream(
        self, command: str, args: Mapping[str, Any] | None = None, **options: Unpack[SessionStreamOptions]
    ) -> Stream:
        """The chunks of a request, as they come, after those before it: see AsyncSession.stream."""
        return Stream(self._run, self._inner.stream(command, args, **options))

    def close(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """End the session, after what is in line: see AsyncSession.close."""
        self._run(self._inner.close(timeout=timeout))
