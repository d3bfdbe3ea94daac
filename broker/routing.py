"""Which queues a message reaches: topic exchanges and their bindings, as RabbitMQ routes. Pure.

In a binding's key `*` stands for one word and `#` for any number of words, none included; words are what lies
between dots. A message reaches a queue at most once, however many bindings lead there.
"""

from __future__ import annotations

from bridge_protocol.topology import Binding

# Routing keys are few, but nothing promises that: past this many the table starts to remember anew.
_REMEMBERED = 4096


class RoutingTable:
    """The exchanges and their bindings. Remembers where a key leads until the bindings change."""

    def __init__(self) -> None:
        self._bindings: dict[str, dict[Binding, None]] = {}
        self._remembered: dict[tuple[str, str], tuple[str, ...]] = {}

    def __contains__(self, exchange: str) -> bool:
        return exchange in self._bindings

    def __repr__(self) -> str:
        bindings = sum(map(len, self._bindings.values()))
        return f"<RoutingTable {len(self._bindings)} exchanges, {bindings} bindings>"

    def declare(self, exchange: str) -> None:
        """Have `exchange`; nothing happens if it is there already."""
        self._bindings.setdefault(exchange, {})

    def bind(self, binding: Binding) -> None:
        """Add `binding`, whose source and destination exist; nothing happens if it is there already."""
        self._bindings[binding.source][binding] = None
        self._remembered.clear()

    def forget_queue(self, queue: str) -> None:
        """Remove every binding to `queue`."""
        for bindings in self._bindings.values():
            for binding in [b for b in bindings if b.destination == queue and not b.to_exchange]:
                del bindings[binding]
        self._remembered.clear()

    def route(self, exchange: str, key: str) -> tuple[str, ...]:
        """The names of the queues that `key` leads to. Raises KeyError if there is no such exchange."""
        queues = self._remembered.get((exchange, key))
        if queues is None:
            queues = self._follow(exchange, key)
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[exchange, key] = queues
        return queues

    def _follow(self, exchange: str, key: str) -> tuple[str, ...]:
        words = key.split(".") if key else []
        queues: dict[str, None] = {}
        exchanges = [exchange]
        for source in exchanges:  # grows while it is walked
            for binding in self._bindings[source]:
                if not matches(binding.key, words):
                    continue
                if not binding.to_exchange:
                    queues[binding.destination] = None
                elif binding.destination not in exchanges:
                    exchanges.append(binding.destination)
        return tuple(queues)


def matches(pattern: str, words: list[str]) -> bool:
    """Whether the binding key `pattern` lets a routing key of these words pass."""
    parts = pattern.split(".") if pattern else []
    # `reached` holds how many parts may have been used up so far; a `#` may also stand for nothing.
    reached = _and_skipped({0}, parts)
    for word in words:
        following = set()
        for used in reached:
            if used == len(parts):
                continue
            if parts[used] == "#":
                following.add(used)
            elif parts[used] in ("*", word):
                following.add(used + 1)
        reached = _and_skipped(following, parts)
    return len(parts) in reached


def _and_skipped(reached: set[int], parts: list[str]) -> set[int]:
    for used in sorted(reached):
        while used < len(parts) and parts[used] == "#":
            used += 1
            reached.add(used)
    return reached
