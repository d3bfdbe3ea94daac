"""Serves `invoices`. It could be in another repository than its callers, on another machine: they share the Api."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal

from bridge_sdk import Bridge
from examples.invoices.api import Currency, Invoices, Line, Total


class Bookkeeping(Invoices):
    """Carries the commands out."""

    def total(self, lines: list[Line], sent: date, days: int = 30, currency: Currency = Currency.EUR) -> Total:
        """See Invoices."""
        amount = sum((line.price * line.count for line in lines), start=Decimal(0))
        return Total(amount=amount, currency=currency, due=sent + timedelta(days=days))

    def render(self, lines: list[Line], total: Total) -> bytes:
        """See Invoices."""
        rows = [f"{line.count} × {line.text}: {line.price * line.count}" for line in lines]
        return "\n".join([*rows, f"{total.amount} {total.currency} by {total.due}"]).encode()

    def reminders(self, total: Total, most: int = 3) -> Iterator[date]:
        """See Invoices."""
        for number in range(1, most + 1):
            yield total.due + timedelta(weeks=2 * number)


bridge = Bridge()
bridge.implement(Invoices, Bookkeeping())

if __name__ == "__main__":
    bridge.serve()
