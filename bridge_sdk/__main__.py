"""`python -m bridge_sdk module[:attribute]`: serve the bridge that a module defines.

Claims standard input and output before the module is imported, so that it may print while it loads. `attribute`
(default `bridge`) names a Bridge, or a class whose public methods are the commands.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

from bridge_sdk.bridge import Bridge
from bridge_sdk.stdio import claim

USAGE = "usage: python -m bridge_sdk module[:attribute]"


def main(arguments: list[str]) -> None:
    """Serve. Exits with code 2, and a line on stderr, if the arguments name no bridge."""
    claim()
    if len(arguments) != 1 or arguments[0].startswith("-"):
        _refuse(USAGE)
    name, _, attribute = arguments[0].partition(":")
    attribute = attribute or "bridge"
    module = importlib.import_module(name)
    found: object = getattr(module, attribute, None)
    if isinstance(found, type):
        found = Bridge(found())
    if not isinstance(found, Bridge):
        _refuse(f"{name} has no Bridge, and no class, called {attribute!r}\n{USAGE}")
    found.serve()


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(message + "\n")
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
