"""The Python in docs/sessions.md runs as it stands there, on the embedded broker."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from typing import Any

from documents import DOCS, blocks
from rig import Rig

SESSIONS = {"enabled": True}
PRODUCER, BRIDGE = blocks("sessions.md", "python")


async def test_its_producer_meets_the_same_process_twice(rig: Rig) -> None:
    await rig.serve((sys.executable, "-m", "examples.notebook.bridge"), name="notebook", sessions=SESSIONS)
    names: dict[str, Any] = {"producer": rig.producer}
    code = compile(PRODUCER, "sessions.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    ended = eval(code, names)
    if inspect.isawaitable(ended):
        await ended
    assert names["reply"].result["value"] == "2"


async def test_its_bridge_counts_in_each_session(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(f"from bridge_sdk import Bridge\n\n{BRIDGE}", encoding="utf-8")
    path = f"{tmp_path}:{DOCS.parent}"
    await rig.serve(
        (sys.executable, "-m", "bridge_sdk", "counter"), sessions=SESSIONS, environment={"PYTHONPATH": path}
    )
    for session in (rig.producer.session("a", service="work"), rig.producer.session("b", service="work")):
        assert [(await session.call("count", timeout=60)).result for _ in range(3)] == [1, 2, 3]
