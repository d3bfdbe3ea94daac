"""A bridge made with the SDK that notes what it began: `python notes.py FILE`."""

import sys
from pathlib import Path

from bridge_sdk import Bridge

bridge = Bridge()


@bridge.command
def note(number: int) -> int:
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{number}\n")
    return number


@bridge.command
def echo() -> None: ...


bridge.serve()
