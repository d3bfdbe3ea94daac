"""A bridge for large payloads: it tells what it was given, gives much, and dies at its first attempts when told to."""

from __future__ import annotations

import hashlib
import os
import signal

from bridge_sdk import Bridge

bridge = Bridge()


@bridge.command
def measure(text: str, attempts: int = 0) -> dict[str, object]:
    """How long, what digest, and which attempt; dies at those up to `attempts`."""
    if bridge.request.attempt <= attempts:
        os.kill(os.getpid(), signal.SIGKILL)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"length": len(text), "sha256": digest, "attempt": bridge.request.attempt}


@bridge.command
def give(size: int) -> str:
    """So many characters."""
    return "é" * size


@bridge.command
def keep(text: str) -> int:
    """In its session."""
    bridge.session.state["text"] = text
    return len(text)


@bridge.command
def kept() -> str:
    """What its session keeps."""
    return str(bridge.session.state["text"])


if __name__ == "__main__":
    bridge.serve()
