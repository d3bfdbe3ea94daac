"""One timer for all calls: each is told of when its end has come, and once."""

from __future__ import annotations

import asyncio

from virtual_time import virtual_time

from producer.call import Call
from producer.overdue import Overdue
from producer.request import PreparedRequest, prepare


def request() -> PreparedRequest:
    return prepare("echo", "echo", None, now=0.0, timeout=None)


class Waiting:
    """Calls, and what was told of them, each with the loop's time."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls: dict[str, Call] = {}
        self.told: list[tuple[str, float]] = []
        self.overdue = Overdue(self.calls, self._tell)

    def add(self, name: str, end: float) -> Call:
        end += self.loop.time()
        self.calls[name] = Call(request(), self.loop.create_future(), end, lambda _: None)
        self.overdue.watch(end)
        return self.calls[name]

    def _tell(self, call: Call) -> None:
        name = next(name for name, other in self.calls.items() if other is call)
        self.told.append((name, self.loop.time()))
        if name.startswith("sending"):
            call.late = True  # it stays until its publish has ended
        else:
            del self.calls[name]


@virtual_time
async def test_each_is_told_of_at_its_end_in_whatever_order_they_came() -> None:
    waiting = Waiting()
    start = waiting.loop.time()
    for name, end in (("b", 3.0), ("a", 1.0), ("sending", 2.0), ("c", 4.0)):
        waiting.add(name, end)
    del waiting.calls["b"]
    await asyncio.sleep(3.5)
    waiting.add("d", 0.25)
    await asyncio.sleep(5)
    assert [name for name, _ in waiting.told] == ["a", "sending", "d", "c"]
    for (_, told), end in zip(waiting.told, (1.0, 2.0, 3.75, 4.0), strict=True):
        assert end <= told - start < end + 0.01
    assert repr(waiting.overdue) == "<Overdue: looks at inf>"


@virtual_time
async def test_many_that_end_apart_are_looked_at_together() -> None:
    waiting = Waiting()
    for number in range(10_000):
        waiting.add(str(number), 1 + number / 10_000_000)
    await asyncio.sleep(2)
    moments = {told for _, told in waiting.told}
    assert len(waiting.told) == 10_000
    assert len(moments) < 10, "each look takes as long as there are calls"


@virtual_time
async def test_when_it_is_closed_nobody_is_told() -> None:
    waiting = Waiting()
    waiting.add("a", 1.0)
    waiting.overdue.close()
    await asyncio.sleep(2)
    assert waiting.told == []
