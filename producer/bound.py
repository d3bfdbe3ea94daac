"""A bound Api: an object whose methods are the commands of a service, called as if it were here.

images = producer.bind("images", Images, timeout=60)
small = images.thumbnail(photo, Size(80, 60))
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol, TypeVar, cast

from bridge_protocol.api import Api, Method, Mismatch
from bridge_protocol.errors import BadRequest, BadResult
from producer.reply import Reply

A = TypeVar("A")
Args = Mapping[str, Any]


class AsyncChunks(AbstractAsyncContextManager["AsyncChunks"], Protocol):
    """An AsyncStream, as far as it matters here."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """The chunks."""


class Chunks(AbstractContextManager["Chunks"], Protocol):
    """A Stream, as far as it matters here."""

    def __iter__(self) -> Iterator[Any]:
        """The chunks."""


def bind(
    api: Callable[..., A],
    where: str,
    call: Callable[[str, Args], Reply],
    stream: Callable[[str, Args], Chunks],
) -> A:
    """An `api` whose methods `call` and `stream` commands; `where` is for people.

    Raises TypeError for what cannot be one.
    """

    def bound(method: Method) -> Callable[..., Any]:
        def calls(*args: Any, **kwargs: Any) -> Any:
            return _read(method, call(method.name, _args(method, args, kwargs)))

        def streams(*args: Any, **kwargs: Any) -> Iterator[Any]:
            return _chunks(method, stream(method.name, _args(method, args, kwargs)))

        if method.asynchronous:
            raise TypeError(f"{method.label} is asynchronous: bind it with an AsyncProducer")
        return streams if method.streams else calls

    return cast("A", Bound(Api(api), where, bound))


def bind_async(
    api: Callable[..., A],
    where: str,
    call: Callable[[str, Args], Awaitable[Reply]],
    stream: Callable[[str, Args], AsyncChunks],
) -> A:
    """The same, whose methods must all be asynchronous."""

    def bound(method: Method) -> Callable[..., Any]:
        async def calls(*args: Any, **kwargs: Any) -> Any:
            return _read(method, await call(method.name, _args(method, args, kwargs)))

        def streams(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            return _async_chunks(method, stream(method.name, _args(method, args, kwargs)))

        if not method.asynchronous:
            instead = "give an AsyncIterator" if method.streams else "be async def"
            raise TypeError(f"{method.label} must {instead}, or be bound with a Producer, for threads")
        return streams if method.streams else calls

    return cast("A", Bound(Api(api), where, bound))


class Bound:
    """Has a method for each of `api`'s."""

    def __init__(self, api: Api, where: str, bound: Callable[[Method], Callable[..., Any]]) -> None:
        self._label = f"<{api.name} of {where}: {', '.join(api.methods)}>"
        for name, method in api.methods.items():
            setattr(self, name, bound(method))

    def __repr__(self) -> str:
        return self._label


def _args(method: Method, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return method.by_name(args, kwargs)
    except Mismatch as error:
        raise BadRequest(str(error)) from None


def _read(method: Method, reply: Reply) -> Any:
    try:
        return method.read(reply.result)
    except Mismatch as error:
        raise BadResult(str(error), message_id=reply.message_id) from None


def _chunks(method: Method, stream: Chunks) -> Iterator[Any]:
    with stream:
        for chunk in stream:
            yield _read_chunk(method, chunk)


async def _async_chunks(method: Method, stream: AsyncChunks) -> AsyncIterator[Any]:
    async with stream:
        async for chunk in stream:
            yield _read_chunk(method, chunk)


def _read_chunk(method: Method, chunk: Any) -> Any:
    try:
        return method.read(chunk)
    except Mismatch as error:
        raise BadResult(str(error)) from None
