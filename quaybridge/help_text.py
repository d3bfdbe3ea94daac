"""What `--help` says of a command: its docstring, one line a paragraph, so that each terminal breaks it for itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable


def help_text(command: Callable[..., object]) -> str:
    """Typer keeps the line ends of all paragraphs but the first, and breaks what is too long once more."""
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in (inspect.getdoc(command) or "").split("\n\n"))
