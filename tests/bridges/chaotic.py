"""The bridge of the chaos runs: it gives what only its own work can give, refuses, or dies, as it is asked to."""

import hashlib
import os
import time

from bridge_sdk import ApplicationError, Bridge

bridge = Bridge()


@bridge.command
def works(number: int, text: str, seconds: float) -> dict[str, object]:
    time.sleep(seconds)
    return {"number": number, "text": text[::-1], "sha256": hashlib.sha256(text.encode()).hexdigest()}


@bridge.command
def refuses(number: int) -> None:
    raise ApplicationError(f"no {number}")


@bridge.command
def poisons(number: int) -> None:
    os._exit(66)


bridge.serve()
