"""For tests of programs that use quaybridge: a service of your own bridge, and failures when you say so.

    from quaybridge.testing import open_service

    with open_service("mock", "shout") as service:
        service.fail("crash", request=2)
        service.call("shout", {"text": "hello"})

In pytest the fixtures `mock_service`, `bridge_service` and `rabbitmq_service` give such services (docs/testing.md).

Each name is imported when it is first used: a pytest run that uses none of this pays for none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quaybridge.testing.adapters import ADAPTERS, Adapter, UnknownAdapter
    from quaybridge.testing.script import Failure, Script
    from quaybridge.testing.service import Service, open_service

__all__ = ["ADAPTERS", "Adapter", "Failure", "Script", "Service", "UnknownAdapter", "open_service"]

_HOMES = {
    "ADAPTERS": "adapters",
    "Adapter": "adapters",
    "UnknownAdapter": "adapters",
    "Failure": "script",
    "Script": "script",
    "Service": "service",
    "open_service": "service",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next use finds it at once
    return value
