"""README.md: its Python runs as they stand there, with a node, on the embedded broker."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from documents import DOCS, blocks
from elsewhere import Elsewhere

import quaybridge
from producer.producer import Producer
from worker_node.node import Node
from worker_node.settings import NodeSettings

README = "../README.md"
SHOUT, CALLS, SESSION = blocks(README, "python")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """A node that serves the README's `shout`, and the notebook of the examples."""
    place = Elsewhere()
    directory: Path = tmp_path_factory.mktemp("readme")
    (directory / "shout.py").write_text(SHOUT, encoding="utf-8")
    shout = {"name": "shout", "command": (sys.executable, "shout.py"), "bridges": 1, "directory": str(directory)}
    shout["environment"] = {"PYTHONPATH": str(DOCS.parent)}
    notebook = {"name": "notebook", "command": (sys.executable, "-m", "examples.notebook.bridge"), "bridges": 1}
    notebook["sessions"] = {"enabled": True}
    node = Node(NodeSettings.model_validate({"services": [shout, notebook]}), place.broker)
    place.run(node.start())
    yield place
    place.run(node.stop())
    place.end()


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        (CALLS, "HELLO\nA\nB\nC\napplication_error ArgumentError: text must be str, not int\n"),
        (SESSION, "{'value': '2', 'printed': ''}\n"),
    ],
    ids=["calls", "session"],
)
def test_its_producers_print_what_they_should(
    code: str, printed: str, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, replaced = re.subn(r'Producer\("amqp://[^"]+"\)', "Producer(BROKER)", code)
    assert replaced == 1
    monkeypatch.setattr(quaybridge, "Producer", partial(Producer, loop=elsewhere.loop))
    exec(code, {"BROKER": elsewhere.broker, "Producer": quaybridge.Producer})
    assert capsys.readouterr().out == printed
