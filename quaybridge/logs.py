"""Logs of the command line: plain lines on stderr, one an event."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum

from quaybridge.exit_status import printable

FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class OneLine(logging.Formatter):
    """Escapes line ends and control characters of a message: a bridge's stderr must not fake a line of ours."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        record.message = printable(record.message)
        return super().formatMessage(record)


def log_to_stderr(level: LogLevel) -> None:
    """Write what is logged at `level` and above. pika's own lines appear at `debug` alone: ours say the same."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(FORMAT))
    logging.basicConfig(level=level.name, handlers=[handler])
    if level is not LogLevel.DEBUG:
        logging.getLogger("pika").setLevel(logging.CRITICAL)
