"""The documents as tests read them: their text, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def text(name: str) -> str:
    """What docs/`name` says."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The blocks of code in this language in docs/`name`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(name), re.MULTILINE | re.DOTALL)


def block(name: str, language: str) -> str:
    """The one block of code in this language in docs/`name`."""
    (found,) = blocks(name, language)
    return found
