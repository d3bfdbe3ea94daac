"""quaybridge: programs that crash, leak and hang, in any language, behind a RabbitMQ queue, with nothing lost.

The names below are the public ones. Each is imported when it is first used: `import pika` alone costs 100 ms.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge_protocol.errors import (
        ApplicationError,
        BadRequest,
        BadResult,
        Blocked,
        BridgeCrashed,
        BridgeTimeout,
        BridgeUnavailable,
        BrokerUnavailable,
        Cancelled,
        Code,
        CodedError,
        DeadlineExceeded,
        FrameError,
        OutcomeUnknown,
        ProtocolViolation,
        PublishFailed,
        QuaybridgeError,
        ReaderStalled,
        Refused,
        RequestFailed,
        SessionLost,
        StreamError,
        StreamGap,
        StreamRestarted,
        TooLarge,
        UnknownService,
    )
    from broker.memory import MemoryBroker
    from broker.store import DirectoryStore
    from producer.async_producer import AsyncProducer
    from producer.producer import Producer
    from producer.progress import Progress
    from producer.reply import Reply
    from worker_node.node import Node
    from worker_node.settings import NodeSettings, RetrySettings, ServiceSettings

__all__ = [  # noqa: RUF022 (in the order a reader needs them)
    # Asking
    "Producer",
    "AsyncProducer",
    "Reply",
    "Progress",
    # Serving
    "Node",
    "NodeSettings",
    "ServiceSettings",
    "RetrySettings",
    # Where large payloads wait
    "DirectoryStore",
    # Without a server: for tests, and for everything in one process
    "MemoryBroker",
    # What can go wrong
    "Code",
    "QuaybridgeError",
    "FrameError",
    "CodedError",
    # … the request ended without success
    "RequestFailed",
    "BadRequest",
    "TooLarge",
    "DeadlineExceeded",
    "Cancelled",
    "ApplicationError",
    "BridgeCrashed",
    "BridgeTimeout",
    "ProtocolViolation",
    "BridgeUnavailable",
    "SessionLost",
    "ReaderStalled",
    # … it never reached a queue
    "PublishFailed",
    "UnknownService",
    "Refused",
    "Blocked",
    "BrokerUnavailable",
    # … nobody can tell
    "OutcomeUnknown",
    # … its result is not what its Api says
    "BadResult",
    # … its chunks do not make one stream
    "StreamError",
    "StreamGap",
    "StreamRestarted",
]

# Where the names live that are not in bridge_protocol.errors.
_HOMES = {
    "Producer": "producer.producer",
    "AsyncProducer": "producer.async_producer",
    "Reply": "producer.reply",
    "Progress": "producer.progress",
    "Node": "worker_node.node",
    "NodeSettings": "worker_node.settings",
    "ServiceSettings": "worker_node.settings",
    "RetrySettings": "worker_node.settings",
    "DirectoryStore": "broker.store",
    "MemoryBroker": "broker.memory",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES.get(name, "bridge_protocol.errors")), name)
    globals()[name] = value  # the next use finds it at once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
