"""What a command may raise, and what is raised in it.

Exception
├── ApplicationError      raised by authors, with what the caller should know
├── ArgumentError         the arguments do not fit the command's signature
│   └── BadArguments      the same, and the caller gets `bad_request`: its request is kept, and was not run
└── UnknownCommand        there is no such command
BaseException
└── Cancelled             raised in a running synchronous command whose request was cancelled
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApplicationError(Exception):
    """Raised by a command to fail with more than a message.

    `retryable` invites the node to try again, `retry_after` (seconds) not before that; `details` is any JSON
    object. Any other exception fails the request too, and is not retried.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after
        self.details: Mapping[str, Any] = details or {}


class ArgumentError(Exception):
    """Raised when arguments are unknown, missing or of the wrong type; the message names them."""


class BadArguments(ArgumentError):
    """Raised when arguments are not what was agreed on: bytes that are no base64, or what a typed command refuses."""


class UnknownCommand(Exception):
    """Raised when a request's command is none of the bridge's; the message lists those."""


class Cancelled(BaseException):
    """Raised in a synchronous command, wherever it is, when its request is cancelled.

    It interrupts sleeping and waiting too. Let it pass: clean up in `finally`. Not an Exception, so that an
    `except Exception` does not stop it. (An asynchronous command gets asyncio.CancelledError, as usual.)
    """
