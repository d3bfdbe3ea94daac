"""The bridge: `python -m examples.notebook.bridge`. One command, `run`, in a session.

It runs what it is sent, with all that its user may do: for callers who are trusted.
"""

from __future__ import annotations

import ast
import io
from contextlib import redirect_stdout
from typing import Any

from bridge_sdk import Bridge


class Notebook:
    """The variables of one session: the bridge makes one for each, and forgets it when the session is over."""

    def __init__(self) -> None:
        self._variables: dict[str, Any] = {"__name__": "notebook"}

    def run(self, code: str) -> dict[str, str | None]:
        """Run a cell; what it `printed`, and the `value` of its last line, if that is an expression, as `repr` has it.

        What it raises is the request's failure; what it did before that stays.
        """
        cell = ast.parse(code, "<cell>")
        last = cell.body.pop() if cell.body and isinstance(cell.body[-1], ast.Expr) else None
        value: Any = None
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(cell, "<cell>", "exec"), self._variables)  # noqa: S102 - it is what this is for
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), self._variables)  # noqa: S307
        return {"value": None if value is None else repr(value), "printed": printed.getvalue()}


bridge = Bridge(session_class=Notebook)

if __name__ == "__main__":
    bridge.serve()
