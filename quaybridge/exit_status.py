"""How the command line ends: the exit status of every outcome, and the line on stderr that explains it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from bridge_protocol.errors import BrokerUnavailable, CodedError, QuaybridgeError


class ExitStatus(IntEnum):
    """What a script can rely on."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_BROKER = 3
    BROKEN_INPUT = 3  # of a batch
    TOPOLOGY = 4
    NO_BRIDGE = 5
    INTERRUPTED = 130


MEANINGS = (
    "Exit status: 0 done, or drained; 1 the request, or a check, failed; 2 usage or configuration; 3 the broker cannot "
    "be reached or refuses us; 4 a queue exists with other arguments; 5 a bridge cannot start; 130 interrupted."
)


def exit_status(error: QuaybridgeError) -> ExitStatus:
    """What `error` means for the process."""
    from broker.contract import BrokerError, TopologyMismatch
    from quaybridge.settings import SettingsError
    from worker_node.node import BridgeStartError

    match error:
        case SettingsError():
            return ExitStatus.USAGE
        case TopologyMismatch():
            return ExitStatus.TOPOLOGY
        case BrokerError() | BrokerUnavailable():
            return ExitStatus.NO_BROKER
        case BridgeStartError():
            return ExitStatus.NO_BRIDGE
    return ExitStatus.FAILED


@contextmanager
def explained(*, verbose: bool = False) -> Iterator[None]:
    """Turn what can be expected to go wrong into its lines on stderr and SystemExit with its status.

    A failure's line begins with its code. `verbose` adds what else the reply said. Anything unexpected passes.
    """
    try:
        yield
    except QuaybridgeError as error:
        sys.stderr.write(_explanation(error, verbose) + "\n")
        raise SystemExit(exit_status(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(ExitStatus.INTERRUPTED) from None


def _explanation(error: QuaybridgeError, verbose: bool) -> str:
    lines = str(error).splitlines() if not isinstance(error, CodedError) else [f"{error.code}: {error.message}"]
    if exit_status(error) is ExitStatus.NO_BROKER and _default_address() in lines[0]:
        lines[0] += " (--broker, QUAYBRIDGE_BROKER, or `broker` in quaybridge.toml names another)"
    if verbose and isinstance(error, CodedError):
        about = {"message_id": error.message_id, "attempt": error.attempt or None, "node": error.node, **error.details}
        lines += [f"  {name}: {json.dumps(value)}" for name, value in about.items() if value is not None]
    return "\n".join(map(printable, lines))


def _default_address() -> str:
    """The broker of whoever names none, as errors show it."""
    from broker.address import parse_address
    from quaybridge.settings import DEFAULT_BROKER

    return str(parse_address(DEFAULT_BROKER))


def printable(text: str) -> str:
    """`text` on one line, with what could move a terminal's cursor escaped: it may come from a bridge."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
