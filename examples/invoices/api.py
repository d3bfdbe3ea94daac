"""What the service `invoices` takes and gives. Callers need this file, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import BaseModel, Field


class Currency(StrEnum):
    """What is paid in."""

    EUR = "EUR"
    CHF = "CHF"


class Line(BaseModel):
    """One line of an invoice."""

    text: str
    price: Decimal
    count: Annotated[int, Field(ge=1)] = 1


class Total(BaseModel):
    """What there is to pay, and until when."""

    amount: Decimal
    currency: Currency
    due: date


class Invoices(Protocol):
    """The commands."""

    def total(self, lines: list[Line], sent: date, days: int = 30, currency: Currency = Currency.EUR) -> Total:
        """What there is to pay, `days` after it was sent."""

    def render(self, lines: list[Line], total: Total) -> bytes:
        """The invoice as a file."""

    def reminders(self, total: Total, most: int = 3) -> Iterator[date]:
        """When to ask again: each two weeks, at most so often."""
