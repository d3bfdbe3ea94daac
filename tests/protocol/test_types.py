"""Apis from end to end: bound by producers, implemented by real bridges, and looked at by mypy."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest
from documents import blocks
from rig import BRIDGES, PATIENCE, Rig, until, with_sdk

from bridge_protocol.errors import ApplicationError, BadRequest, BadResult, BridgeCrashed
from bridge_sdk import Bridge
from examples.invoices.api import Currency, Invoices, Line, Total
from producer.producer import Producer

ROOT = Path(__file__).parents[2]
INVOICES = (sys.executable, "-m", "examples.invoices")
LINES = [Line(text="é", price=Decimal("1.10"), count=3), Line(text="b", price=Decimal("0.70"))]


def _loaded(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, BRIDGES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # where its annotations are resolved
    specification.loader.exec_module(module)
    return module


album = _loaded("album")
PHOTO = album.Photo("sea", b"\xff\xd8", date(2026, 1, 31))


def serving(style: str) -> tuple[str, ...]:
    return (*with_sdk("album"), style)


async def test_in_threads(rig: Rig) -> None:
    await rig.serve(INVOICES)

    def ask(loop: asyncio.AbstractEventLoop) -> None:
        with Producer(rig.broker, loop=loop) as producer:
            invoices = producer.bind("work", Invoices, timeout=PATIENCE, priority=5)
            assert repr(invoices) == "<Invoices of work: reminders, render, total>"
            total = invoices.total(LINES, sent=date(2026, 1, 31), days=14)
            assert total == Total(amount=Decimal("4.00"), currency=Currency.EUR, due=date(2026, 2, 14))
            assert "3 × é: 3.30\n1 × b: 0.70\n4.00 EUR by 2026-02-14".encode() == invoices.render(LINES, total)
            assert list(invoices.reminders(total, most=2)) == [date(2026, 2, 28), date(2026, 3, 14)]
            for reminder in invoices.reminders(total, 1000):
                assert reminder.year == 2026
                break  # ends the work

    await asyncio.to_thread(ask, asyncio.get_running_loop())


@pytest.mark.parametrize("style", ["sync", "async"])
async def test_in_asyncio_whatever_the_bridge_is(rig: Rig, style: str) -> None:
    await rig.serve(serving(style))
    photos = rig.producer.bind("work", album.AsyncAlbum, timeout=PATIENCE)
    assert await photos.add(PHOTO, {"sea", "blue"}) == 1
    assert await photos.add(album.Photo("hill", b"", date(2026, 2, 1))) == 2
    assert await photos.find("blue") == [PHOTO]
    assert [content async for content in photos.contents()] == [b"\xff\xd8", b""]


async def test_what_does_not_fit_is_not_sent(rig: Rig) -> None:
    """Nobody serves it here: it would have ended in UnknownService."""
    await rig.producer.start()
    photos: Any = rig.producer.bind("nobody", album.AsyncAlbum)
    with pytest.raises(BadRequest, match=r"AsyncAlbum\.add: photo: Input should be a dictionary or an instance"):
        await photos.add("sea")
    with pytest.raises(BadRequest, match=r"AsyncAlbum\.add: photo\.taken: Field required"):
        await photos.add({"name": "sea", "content": b""})
    with pytest.raises(BadRequest, match="missing a required argument: 'tag'"):
        await photos.find()


async def test_what_other_callers_send_is_a_bad_request_that_names_it_and_does_not_run(rig: Rig) -> None:
    await rig.serve(serving("sync"))
    for args, problem in [
        ({"photo": {"name": "sea", "content": b"", "taken": "soon"}}, r"photo\.taken: Input should be a valid date"),
        ({}, "photo: it is missing"),
        ({"photo": {"name": "sea", "content": b"", "taken": "2026-01-31"}, "x": 1}, "x: there is no such argument"),
    ]:
        with pytest.raises(BadRequest, match=problem):
            await rig.call("add", args)
    args = {"photo": {"name": "sea", "content": "text", "taken": "2026-01-31"}, "tags": ["a", "b"]}
    assert await rig.call("add", args) == 1  # none of those before ran


async def test_what_is_given_is_checked_at_both_ends(rig: Rig) -> None:
    class Hopes(Protocol):
        async def echo(self, number: int) -> int: ...

        def cut(self, data: bytes, size: int) -> AsyncIterator[int]: ...

    await rig.serve(serving("async"))
    photos = rig.producer.bind("work", album.AsyncAlbum, timeout=PATIENCE)
    with pytest.raises(ApplicationError, match=r"Mismatch: AsyncAlbum\.broken: what it gives: Input should be a valid"):
        await photos.broken("result")
    with pytest.raises(ApplicationError, match="ValueError: no such way"):
        await photos.broken("otherwise")
    with pytest.raises(BridgeCrashed):
        await photos.crash()
    await rig.nodes[0].stop()
    await rig.node(with_sdk("octets")).start()
    wrong = rig.producer.bind("work", Hopes, timeout=PATIENCE)
    with pytest.raises(BadResult, match=r"Hopes\.echo: what it gives: Input should be a valid integer") as refused:
        await wrong.echo(7)
    assert refused.value.message_id is not None
    with pytest.raises(BadResult, match=r"Hopes\.cut: what it gives: Input should be a valid integer"):
        await anext(wrong.cut(b"ab", 1).__aiter__())


async def test_in_a_session(rig: Rig) -> None:
    await rig.serve(serving("sync"), bridges=2, sessions={"enabled": True})
    async with rig.producer.session("s1", service="work") as session:
        photos = session.bind(album.AsyncAlbum, timeout=PATIENCE)
        assert repr(photos).startswith("<AsyncAlbum of session s1 of work: ")
        assert [await photos.add(PHOTO) for _ in range(5)] == [1, 2, 3, 4, 5]  # one bridge has them all
        assert [chunk async for chunk in photos.contents()] == [PHOTO.content] * 5


class Endless(Protocol):
    def endless(self) -> AsyncIterator[int]: ...


async def test_leaving_its_chunks_early_ends_the_work(rig: Rig) -> None:
    service = await rig.serve(with_sdk("streams"))
    async for chunk in rig.producer.bind("work", Endless, timeout=PATIENCE).endless():
        assert chunk == 0
        break
    await until(lambda: not any(True for _ in service.pool.tickets()))


class Mixed(Protocol):
    def plain(self) -> int: ...


class Chunked(Protocol):
    def chunks(self) -> Iterator[int]: ...


async def test_a_class_that_cannot_be_bound_says_why(rig: Rig) -> None:
    producer = Producer(rig.broker, loop=asyncio.get_running_loop())
    with pytest.raises(TypeError, match=r"AsyncAlbum\.add is asynchronous: bind it with an AsyncProducer"):
        producer.bind("work", album.AsyncAlbum)
    with pytest.raises(TypeError, match=r"Mixed\.plain must be async def, or be bound with a Producer"):
        rig.producer.bind("work", Mixed)
    with pytest.raises(TypeError, match=r"Chunked\.chunks must give an AsyncIterator"):
        rig.producer.bind("work", Chunked)
    with pytest.raises(TypeError, match="an Api is a class"):
        rig.producer.bind("work", lambda: 7)


def test_an_implementation_that_is_none_says_why() -> None:
    class Short:
        def plain(self, more: int) -> int:
            return more

    class Fixed:
        def chunks(self) -> list[int]:
            return []

    for api, instance, problem in [
        (Mixed, object(), r"Mixed\.plain is not implemented by object"),
        (Mixed, Short(), r"Short\.plain cannot be called as Mixed\.plain says: missing a required argument: 'more'"),
        (Chunked, Fixed(), r"Fixed\.chunks must be a generator \(with a yield\): Chunked\.chunks says so"),
    ]:
        with pytest.raises(TypeError, match=problem):
            Bridge().implement(api, instance)
    bridge = Bridge(album.Plain())
    with pytest.raises(ValueError, match="there is a command 'add' already"):
        bridge.implement(album.Album, album.Plain())


async def test_the_bridge_in_the_documentation_serves_its_api(rig: Rig, tmp_path: Path) -> None:
    """As it stands in docs/bridges.md; and as a caller in another language would ask it."""
    _, source = blocks("bridges.md", "python")
    bridge = tmp_path / "darkroom.py"
    bridge.write_text(source)
    await rig.serve((sys.executable, str(bridge)))
    assert await rig.call("turn", {"photo": {"content": b"\xff\xd8"}}) == {"content": b"\xd8\xff", "taken": None}
    with pytest.raises(BadRequest, match=r"Darkroom\.turn: photo\.content: Field required"):
        await rig.call("turn", {"photo": {}})


def test_neither_a_bridge_nor_a_producer_pays_for_what_it_does_not_use() -> None:
    program = "import bridge_sdk, producer.producer, sys; print('pydantic' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"


def test_mypy_refuses_what_is_wrong_and_nothing_else() -> None:
    """The lines of the file say which they are."""
    file = ROOT / "tests" / "typed_calls.py"
    wanted = {
        (number, code)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        for code in re.findall(r"# error: ([a-z-]+)$", line)
    }
    assert len(wanted) > 10
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", str(file)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout
    found = re.findall(r"typed_calls\.py:(\d+): error: .*\[([a-z-]+)\]$", said, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == wanted, said
