"""Stores: where large payloads wait while a claim check travels in their place.

    store = DirectoryStore("/srv/share/quaybridge")       # a directory that all the machines share
    Producer(url, store=store)

Whoever wants another one writes a class with the four methods of Store. They are called in threads, several at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from bridge_protocol.claim_check import ClaimCheck, claim_check, reference_problem
from bridge_protocol.errors import BadRequest

STORE_TIMEOUT = 60.0  # seconds that a node waits for a store to take or give one payload
MOST_AT_ONCE = 16  # payloads of one service, or producer, on their way from a store; and as many on their way there


class Store(Protocol):
    """Keeps bytes by references, 32 hexadecimal digits each. Every method may raise OSError;
    whatever else it raises counts as one."""

    def put(self, reference: str, content: bytes) -> None:
        """Keep `content`, safe against loss as the broker keeps messages. The reference is new."""

    def get(self, reference: str, size: int) -> bytes | None:
        """What is kept by it, and if that is more, the first `size` + 1 bytes; None: there is nothing. It is in use:
        its age begins anew."""

    def delete(self, reference: str) -> None:
        """Keep it no longer. Does nothing if there is nothing."""

    def sweep(self, age: float) -> int:
        """Delete what was not used for `age` seconds; how many there were."""


class DirectoryStore:
    """Keeps each payload in a file: `<directory>/<first two digits>/<reference>`.

    The directory must exist, and raises ValueError if it does not: made here, it could be where another should have
    been mounted. No other file in it is touched.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory).absolute()
        if not self._directory.is_dir():
            raise ValueError(f"{str(directory)!r} is no directory: make it, on a file system that all machines share")

    def __repr__(self) -> str:
        return f"<DirectoryStore {self._directory}>"

    def put(self, reference: str, content: bytes) -> None:
        """See Store. Whoever reads finds all of it or nothing."""
        path = self._path(reference)
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir()
        begun = path.with_suffix(".part")
        try:
            with begun.open("xb") as writing:
                writing.write(content)
                writing.flush()
                os.fsync(writing.fileno())
            begun.rename(path)
            _sync_directory(path.parent)
        except BaseException:
            begun.unlink(missing_ok=True)
            raise

    def get(self, reference: str, size: int) -> bytes | None:
        """See Store."""
        path = self._path(reference)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as reading:
            content = reading.read(size + 1)
        with contextlib.suppress(OSError):  # another user's file can be read and not touched
            os.utime(path)
        return content

    def delete(self, reference: str) -> None:
        """See Store."""
        self._path(reference).unlink(missing_ok=True)

    def sweep(self, age: float) -> int:
        """See Store."""
        before = time.time() - age
        deleted = 0
        for entry in self._entries():
            with contextlib.suppress(FileNotFoundError):  # another sweep was faster
                if entry.stat(follow_symlinks=False).st_mtime < before:
                    os.unlink(entry.path)
                    deleted += 1
        return deleted

    def _path(self, reference: str) -> Path:
        if problem := reference_problem(reference):
            raise ValueError(problem)
        return self._directory / reference[:2] / reference

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """The files that are the store's own, begun ones too."""
        with os.scandir(self._directory) as directories:
            inner = [each.path for each in directories if len(each.name) == 2 and each.is_dir(follow_symlinks=False)]
        for directory in inner:
            with os.scandir(directory) as files:
                for file in files:
                    if not reference_problem(file.name.removesuffix(".part")):
                        yield file


def check_in(store: Store, content: bytes) -> ClaimCheck:
    """Put `content` into the store; what it takes to fetch it. Raises OSError."""
    claim = claim_check(secrets.token_hex(16), content)
    with as_os_error():
        store.put(claim.reference, content)
    return claim


def check_out(store: Store | None, claim: ClaimCheck, *, limit: int) -> bytes:
    """What was checked in, verified; it stays where it is.

    Raises BadRequest, which names the claim, for what another try would not change, and OSError.
    """
    if store is None:
        raise BadRequest(f"claim {claim.reference} cannot be fetched: no store is set here (--store DIRECTORY)")
    if claim.size > limit:
        raise BadRequest(f"claim {claim.reference} has {claim.size:,} bytes, the limit is {limit:,}")
    with as_os_error():
        content = store.get(claim.reference, claim.size)
    if problem := claim.problem(content):
        raise BadRequest(problem)
    assert content is not None
    return content


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
    """What a store raises, as the OSError of its contract. It is its author's code, and a request waits for it."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
