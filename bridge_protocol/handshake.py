"""The handshake: the first request on every bridge, and what a bridge claims in its answer.

Apart from `messages`, because bridges do without it: every one of them pays for what it imports when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bridge_protocol.fields import is_integer, wrong
from bridge_protocol.frames import DEFAULT_LIMIT
from bridge_protocol.messages import HANDSHAKE_ID, PING, PROTOCOL_VERSION, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """On `signal` the process `pid`, the bridge or one it started, writes its threads' stacks to stderr."""

    pid: int
    signal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a bridge claims in `result.capabilities` of its handshake; a bridge that claims nothing has these.

    `concurrency` is the number of requests it takes at once, `commands` their names where it lists them, `stacks`
    how to ask where it hangs: `{"pid": 1234, "signal": 64}`. `ahead` is how many more it takes while one runs (at a
    concurrency of 1): it begins them in the order they come, and gives back what it has not begun when asked to by a
    cancel with `"unbegun": true`. `binary`: it knows what stands for bytes.
    """

    protocol: int = 0
    concurrency: int = 1
    cancel: bool = False
    stream: bool = False
    shutdown: bool = False
    commands: tuple[str, ...] = ()
    stacks: Stacks | None = None
    ahead: int = 0
    binary: bool = False


def handshake(worker_id: str, timestamp: str = "", *, frame_limit: int = DEFAULT_LIMIT) -> Request:
    """The first request on every bridge; any success is READY. `worker_id` is `<node>-<slot>`.

    `frame_limit` (bytes) is told where it is not the default: a larger reply would be the bridge's end.
    """
    args: dict[str, Any] = {"initialization": True, "worker_id": worker_id, "protocol": PROTOCOL_VERSION}
    if frame_limit != DEFAULT_LIMIT:
        args["frame_limit"] = frame_limit
    return Request(id=HANDSHAKE_ID, command=PING, args=args, timestamp=timestamp)


def read_capabilities(result: Any) -> Capabilities:
    """What a handshake's result claims. Raises FrameError if it claims nonsense.

    Only `result.capabilities` is believed: older bridges echo the handshake's args elsewhere.
    """
    claimed = result.get("capabilities") if isinstance(result, dict) else None
    if not isinstance(claimed, dict):
        return Capabilities()
    concurrency = claimed.get("concurrency", 1)
    if not is_integer(concurrency) or not 1 <= concurrency <= 1024:
        raise wrong("capabilities.concurrency", "1 … 1024", concurrency)
    ahead = claimed.get("ahead", 0)
    if not is_integer(ahead) or not 0 <= ahead <= 1024:
        raise wrong("capabilities.ahead", "0 … 1024", ahead)
    protocol = claimed.get("protocol")
    commands = claimed.get("commands")
    return Capabilities(
        protocol=protocol if is_integer(protocol) else 0,
        concurrency=concurrency,
        cancel=claimed.get("cancel") is True,
        stream=claimed.get("stream") is True,
        shutdown=claimed.get("shutdown") is True,
        commands=tuple(c for c in commands if isinstance(c, str)) if isinstance(commands, list) else (),
        stacks=_stacks(claimed.get("stacks")),
        ahead=ahead,
        binary=claimed.get("binary") is True,
    )


def _stacks(value: Any) -> Stacks | None:
    if not isinstance(value, dict):
        return None
    pid, number = value.get("pid"), value.get("signal")
    if not (is_integer(pid) and 0 < pid < 2**31 and is_integer(number) and 0 < number <= 64):
        return None
    return Stacks(pid=pid, signal=number)
