"""What is said on the control exchange, beside the requests: to every node at once, and to nobody in particular.

    cancel    a producer no longer wants a request                routing key `cancel.<service>`
    owns      a node serves the sessions of a queue from now on    routing key `owns.<service>`
    consumes  a node has begun to consume queues of sessions       likewise
    credit    a reader took chunks of a stream                     to the queue of its node, by the default exchange

A control message is a JSON object with `protocol`, `control` (its kind) and the kind's own fields. Nobody answers
it: what became of a cancelled request is told where its reply goes. Nodes pass over kinds they do not know, so
that newer ones can be added. Whoever may publish to the exchange may cancel a request whose message id, 128 random
bits, they know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge_protocol import codec
from bridge_protocol.envelope import message_id_problem
from bridge_protocol.errors import FrameError, FrameKind
from bridge_protocol.messages import PROTOCOL_VERSION
from bridge_protocol.topology import CONTROL, PARTITIONS, Binding, Queue, service_name_problem

CANCEL = "cancel"
OWNS = "owns"
CONSUMES = "consumes"
CREDIT = "credit"
# What may be on its way to a reader who has not said that it took it: past either there is no credit.
WINDOW_CHUNKS = 256
WINDOW_BYTES = 1024 * 1024
MAX_NODE_NAME = 128
MAX_RUN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The request `message_id` of `service` shall not run, or not run on."""

    service: str
    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Owns:
    """`node` was given a request of that partition of the service's sessions: whoever had it before has it no more."""

    service: str
    partition: int
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumes:
    """`node` stands by for those partitions of the service's sessions, or is given their requests from now on."""

    service: str
    partitions: tuple[int, ...]
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """The reader of that run has taken so many of its chunks, all in all."""

    service: str
    run: str
    chunks: int


def encode_cancel(cancel: Cancel) -> bytes:
    """The body of a cancel. Raises ValueError for a service or message id that cannot be one."""
    if problem := _cancel_problem(cancel.service, cancel.message_id):
        raise ValueError(problem)
    return _encode(CANCEL, cancel.service, message_id=cancel.message_id)


def encode_owns(owns: Owns) -> bytes:
    """The body of an announcement. Raises ValueError for what cannot be one."""
    if problem := _partitions_problem(owns.service, (owns.partition,), owns.node):
        raise ValueError(problem)
    return _encode(OWNS, owns.service, partition=owns.partition, node=owns.node)


def encode_consumes(consumes: Consumes) -> bytes:
    """The body of an announcement. Raises ValueError for what cannot be one."""
    if problem := _partitions_problem(consumes.service, consumes.partitions, consumes.node):
        raise ValueError(problem)
    return _encode(CONSUMES, consumes.service, partitions=list(consumes.partitions), node=consumes.node)


def encode_credit(credit: Credit) -> bytes:
    """The body of a credit. Raises ValueError for what cannot be one."""
    if problem := _credit_problem(credit.service, credit.run, credit.chunks):
        raise ValueError(problem)
    return _encode(CREDIT, credit.service, run=credit.run, chunks=credit.chunks)


def owns_key(service: str) -> str:
    """The routing key of announcements about the service's sessions."""
    return f"{OWNS}.{service}"


def cancel_key(service: str) -> str:
    """The routing key of cancels of the service's requests."""
    return f"{CANCEL}.{service}"


def decode_control(body: bytes | bytearray) -> Cancel | Owns | Consumes | Credit | None:
    """What a control message says; None: a kind, or a version of the protocol, that is not known here.

    Raises FrameError for what is no control message.
    """
    said = codec.decode(body)
    protocol, kind = said.get("protocol"), said.get("control")
    if not isinstance(protocol, int) or isinstance(protocol, bool):
        raise FrameError(FrameKind.BAD_ENVELOPE, "a control message needs the version of its protocol")
    if not isinstance(kind, str):
        raise FrameError(FrameKind.BAD_ENVELOPE, "a control message needs a kind")
    if protocol != PROTOCOL_VERSION or kind not in (CANCEL, OWNS, CONSUMES, CREDIT):
        return None
    if kind == OWNS:
        return _read_owns(said)
    if kind == CONSUMES:
        return _read_consumes(said)
    if kind == CREDIT:
        return _read_credit(said)
    service, message_id = said.get("service"), said.get("message_id")
    if not isinstance(service, str) or not isinstance(message_id, str):
        raise FrameError(FrameKind.BAD_ENVELOPE, "a cancel needs a service and a message id, as texts")
    if problem := _cancel_problem(service, message_id):
        raise FrameError(FrameKind.BAD_ENVELOPE, problem)
    return Cancel(service=service, message_id=message_id)


def control_topology(queue: str, services: tuple[str, ...]) -> tuple[Queue | Binding, ...]:
    """A node's own ear at the control exchange: `queue` ends with the connection that declares it."""
    return (
        Queue(queue, exclusive=True),
        *(Binding(CONTROL, key(service), queue) for service in services for key in (cancel_key, owns_key)),
    )


def _encode(kind: str, service: str, **rest: str | int | list[int]) -> bytes:
    return codec.encode({"protocol": PROTOCOL_VERSION, "control": kind, "service": service, **rest})


def _read_owns(said: Mapping[str, Any]) -> Owns:
    service, partition, node = said.get("service"), said.get("partition"), said.get("node")
    if not isinstance(service, str) or not isinstance(node, str) or type(partition) is not int:
        raise FrameError(FrameKind.BAD_ENVELOPE, "an announcement needs a service, a partition and a node")
    if problem := _partitions_problem(service, (partition,), node):
        raise FrameError(FrameKind.BAD_ENVELOPE, problem)
    return Owns(service=service, partition=partition, node=node)


def _read_consumes(said: Mapping[str, Any]) -> Consumes:
    service, partitions, node = said.get("service"), said.get("partitions"), said.get("node")
    if not isinstance(service, str) or not isinstance(node, str) or not isinstance(partitions, list):
        raise FrameError(FrameKind.BAD_ENVELOPE, "an announcement needs a service, partitions and a node")
    if not all(type(partition) is int for partition in partitions):
        raise FrameError(FrameKind.BAD_ENVELOPE, "partitions are numbers")
    if problem := _partitions_problem(service, partitions, node):
        raise FrameError(FrameKind.BAD_ENVELOPE, problem)
    return Consumes(service=service, partitions=tuple(partitions), node=node)


def _read_credit(said: Mapping[str, Any]) -> Credit:
    service, run, chunks = said.get("service"), said.get("run"), said.get("chunks")
    if not isinstance(service, str) or not isinstance(run, str) or type(chunks) is not int:
        raise FrameError(FrameKind.BAD_ENVELOPE, "a credit needs a service, a run and a number of chunks")
    if problem := _credit_problem(service, run, chunks):
        raise FrameError(FrameKind.BAD_ENVELOPE, problem)
    return Credit(service=service, run=run, chunks=chunks)


def _credit_problem(service: str, run: str, chunks: int) -> str | None:
    if not 1 <= len(run) <= MAX_RUN or not run.isalnum() or not run.isascii():
        return "a run must be what the headers of its chunks say it is"
    if chunks < 0:
        return f"a number of chunks counts from 0, and is not {chunks}"
    return service_name_problem(service)


def _partitions_problem(service: str, partitions: Sequence[int], node: str) -> str | None:
    for partition in partitions:
        if not 0 <= partition < PARTITIONS:
            return f"a partition must be 0 … {PARTITIONS - 1}, not {partition}"
    if not 1 <= len(node) <= MAX_NODE_NAME or not node.isprintable():
        return f"a node's name must be 1 … {MAX_NODE_NAME} printable characters"
    return service_name_problem(service)


def _cancel_problem(service: str, message_id: str) -> str | None:
    return service_name_problem(service) or message_id_problem(message_id)
