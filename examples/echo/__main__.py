"""Gives back what it is given; sleeps, fails, logs and tells its process id when asked to."""

import os
import sys
import time
from typing import Any

from bridge_sdk import ApplicationError, Bridge

bridge = Bridge(concurrency=int(sys.argv[1]) if len(sys.argv) > 1 else 1)


@bridge.command
def echo(**args: Any) -> dict[str, Any]:
    return args


@bridge.command
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@bridge.command
def fail(message: str = "as asked", retryable: bool = False) -> None:
    raise ApplicationError(message, retryable=retryable)


@bridge.command
def log(bytes: int) -> int:
    sys.stderr.write("x" * (bytes - 1) + "\n")
    return bytes


@bridge.command
def pid() -> int:
    return os.getpid()


if __name__ == "__main__":
    bridge.serve()
