"""The adapters: what a service under test runs on, by name. Imports nothing: pytest reads this in every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bridge_protocol.errors import QuaybridgeError


class UnknownAdapter(QuaybridgeError):
    """Raised for a name that no adapter has; the message lists those there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """`in_process`: the bridge's commands run in the test's own process. `server`: the broker is a real RabbitMQ."""

    name: str
    in_process: bool
    server: bool


ADAPTERS: Mapping[str, Adapter] = MappingProxyType(
    {
        adapter.name: adapter
        for adapter in (
            Adapter(name="mock", in_process=True, server=False),
            Adapter(name="memory", in_process=False, server=False),
            Adapter(name="rabbitmq", in_process=False, server=True),
        )
    }
)


def adapter_named(name: str) -> Adapter:
    """The adapter of that name. Raises UnknownAdapter."""
    if name not in ADAPTERS:
        raise UnknownAdapter(f"there is no adapter {name!r}: choose one of {', '.join(ADAPTERS)}")
    return ADAPTERS[name]
