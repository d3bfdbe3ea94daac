"""Reads the shipped test vectors. Their schema is in tests/vectors/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DIRECTORY = Path(__file__).parent.parent / "vectors"


def cases(file: str) -> list[Any]:
    """The cases of `file`, as pytest parameters named as they are."""
    loaded = json.loads((DIRECTORY / file).read_text(encoding="utf-8"))["cases"]
    names = [case["name"] for case in loaded]
    assert len(set(names)) == len(names), f"a name is given twice in {file}"
    return [pytest.param(case, id=case["name"]) for case in loaded]


def octets(parts: list[dict[str, Any]]) -> bytes:
    """The bytes that `parts` describe."""
    return b"".join(
        (bytes.fromhex(part["hex"]) if "hex" in part else part["text"].encode()) * part.get("times", 1)
        for part in parts
    )
