"""The bridge: one command, `summarise`, of a file or of source given as text."""

from typing import Any

from bridge_sdk import ApplicationError, Bridge
from examples.analyse import analysis

bridge = Bridge()


@bridge.command
def summarise(path: str | None = None, source: str | None = None) -> dict[str, Any]:
    if (path is None) == (source is None):
        raise ApplicationError("give either path or source")
    name = path or "<source>"
    try:
        return analysis.summarise(analysis.read(name) if source is None else source, name)
    except OSError as error:
        raise ApplicationError(f"{name}: {error.strerror}", details={"path": name}) from None
    except analysis.Unparsable as error:
        where = {"path": name, "line": error.line, "column": error.column, "text": error.text}
        raise ApplicationError(f"{name}:{error.line or '?'}: {error}", details=where) from None


if __name__ == "__main__":
    bridge.serve()
