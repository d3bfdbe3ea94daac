"""A bridge that implements an Api; `sync` as its argument: with plain methods. Imported, it is the Api alone."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Protocol

from bridge_sdk import Bridge


@dataclass
class Photo:
    """A photo."""

    name: str
    content: bytes
    taken: date


class Album(Protocol):
    """For threads."""

    def add(self, photo: Photo, tags: set[str] | None = None) -> int: ...

    def find(self, tag: str) -> list[Photo]: ...

    def contents(self) -> Iterator[bytes]: ...

    def broken(self, how: str) -> int: ...

    def crash(self) -> None: ...


class AsyncAlbum(Protocol):
    """The same for asyncio."""

    async def add(self, photo: Photo, tags: set[str] | None = None) -> int: ...

    async def find(self, tag: str) -> list[Photo]: ...

    def contents(self) -> AsyncIterator[bytes]: ...

    async def broken(self, how: str) -> int: ...

    async def crash(self) -> None: ...


class Kept:
    """What both have."""

    def __init__(self) -> None:
        self.photos: list[tuple[Photo, set[str]]] = []

    def keep(self, photo: Photo, tags: set[str] | None) -> int:
        assert type(photo) is Photo
        assert type(photo.taken) is date
        assert tags is None or type(tags) is set
        self.photos.append((photo, tags or set()))
        return len(self.photos)

    def tagged(self, tag: str) -> list[Photo]:
        return [photo for photo, tags in self.photos if tag in tags]

    def wrong(self, how: str) -> int:
        if how == "result":
            return "no number"  # type: ignore[return-value]
        raise ValueError("no such way")


class Plain(Kept, Album):
    def add(self, photo: Photo, tags: set[str] | None = None) -> int:
        return self.keep(photo, tags)

    def find(self, tag: str) -> list[Photo]:
        return self.tagged(tag)

    def contents(self) -> Iterator[bytes]:
        for photo, _ in self.photos:
            yield photo.content

    def broken(self, how: str) -> int:
        return self.wrong(how)

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Waiting(Kept, AsyncAlbum):
    async def add(self, photo: Photo, tags: set[str] | None = None) -> int:
        return self.keep(photo, tags)

    async def find(self, tag: str) -> list[Photo]:
        return self.tagged(tag)

    async def contents(self) -> AsyncIterator[bytes]:
        for photo, _ in self.photos:
            yield photo.content

    async def broken(self, how: str) -> int:
        return self.wrong(how)

    async def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    bridge = Bridge()
    if sys.argv[1:] == ["sync"]:
        bridge.implement(Album, Plain())
    else:
        bridge.implement(AsyncAlbum, Waiting())
    bridge.serve()
