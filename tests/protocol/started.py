"""What a test has started, and not ended."""

from __future__ import annotations

import psutil


def started_here() -> list[psutil.Process]:
    """The children of this process, but for the rabbitmq-server that the tests of other layers share."""
    return [child for child in psutil.Process().children() if child.name() != "rabbitmq-server"]
