"""Right and wrong uses of a bound Api, for mypy: each line that it must refuse says so, with the error's code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import date
from decimal import Decimal
from typing import Protocol

from bridge_sdk import Bridge
from examples.invoices.api import Invoices, Line, Total
from producer.async_producer import AsyncProducer
from producer.producer import Producer
from producer.session import AsyncSession
from producer.thread_session import Session


class Images(Protocol):
    async def turn(self, image: bytes, by: int = 90) -> bytes: ...

    def tiles(self, image: bytes) -> AsyncIterator[bytes]: ...


class Turner(Images):
    async def turn(self, image: bytes, by: str = "90") -> bytes:  # error: override
        return image


def in_threads(producer: Producer, session: Session, lines: list[Line], sent: date) -> None:
    invoices = producer.bind("invoices", Invoices, timeout=60, priority=3)
    total: Total = invoices.total(lines, sent)
    text: str = invoices.render(lines, total)  # error: assignment
    days: Iterator[date] = invoices.reminders(total, most=2)
    invoices.total(lines, "2026-01-31")  # error: arg-type
    invoices.total(lines)  # error: call-arg
    invoices.total([Line(text="a", price=Decimal(1))], sent, dayz=3)  # error: call-arg
    invoices.totals(lines, sent)  # error: attr-defined
    producer.bind("invoices", Invoices, timeuot=60)  # error: call-arg
    session.bind(Invoices).render(lines, sent)  # error: arg-type
    print(text, list(days))


async def in_asyncio(producer: AsyncProducer, session: AsyncSession, image: bytes) -> None:
    images = producer.bind("images", Images)
    turned: bytes = await images.turn(image, by=180)
    images.turn(image)  # error: unused-coroutine
    wrong: str = await images.turn(image)  # error: assignment
    async for tile in images.tiles(turned):
        tile.encode()  # error: attr-defined
    await session.bind(Images, idempotent=True).turn("text")  # error: arg-type
    print(wrong)


def served(bridge: Bridge) -> None:
    bridge.implement(Images, Turner())  # error: abstract
    bridge.implement(Images)  # error: call-arg
