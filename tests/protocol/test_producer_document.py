"""docs/producer.md: its Python runs as it stands there, with a node, on the embedded broker."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from documents import text
from elsewhere import Elsewhere

from broker.store import DirectoryStore
from producer.producer import Producer
from worker_node.node import Node
from worker_node.settings import NodeSettings

FIRST, *BLOCKS = re.findall(r"^```python\n(.*?)^```$", text("producer.md"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the examples share, for an embedded broker, which lives on a loop of another thread."""
    elsewhere = Elsewhere()
    store: Path = tmp_path_factory.mktemp("store")
    echo = {"name": "echo", "command": (sys.executable, "-m", "examples.echo"), "bridges": 1}
    invoices = {"name": "invoices", "command": (sys.executable, "-m", "examples.invoices"), "bridges": 1}
    settings = NodeSettings.model_validate({"services": [echo, invoices]})

    async def start() -> Node:
        node = Node(settings, elsewhere.broker, store=DirectoryStore(store))
        await node.start()
        return node

    node = elsewhere.run(start())
    shared: dict[str, Any] = {}
    exec(FIRST, shared)
    shared["BROKER"] = elsewhere.broker
    shared["STORE"] = store
    shared["Producer"] = partial(Producer, loop=elsewhere.loop)
    shared["asyncio"] = SimpleNamespace(**{**vars(asyncio), "run": elsewhere.run})
    yield shared
    elsewhere.run(node.stop())
    elsewhere.end()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1].strip()[:40])
def test_the_examples_run(block: str, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(block, dict(names))
    assert capsys.readouterr().out


def test_there_are_some() -> None:
    assert len(BLOCKS) >= 7
