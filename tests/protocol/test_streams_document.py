"""The blocks of Python in docs/streams.md run as they stand, on the embedded broker."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

from documents import text
from rig import Rig

from producer.producer import Producer

SECTIONS = re.split(r"^## ", text("streams.md"), flags=re.MULTILINE)[1:]
BLOCKS = [
    (f"streams.md, {section.splitlines()[0]}, block {number}", block)
    for section in SECTIONS
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL), 1)
]


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 8


async def test_each_block_runs(rig: Rig) -> None:
    await rig.serve((sys.executable, "-m", "examples.stream_words"), name="words", bridges=2)
    loop = asyncio.get_running_loop()

    def run() -> None:
        with Producer(rig.broker, loop=loop) as producer:
            for name, block in BLOCKS:
                names: dict[str, Any] = {
                    "__name__": "document",
                    "asyncio": asyncio,
                    "loop": loop,
                    "producer": producer,
                    "async_producer": rig.producer,
                }
                exec(compile(block, name, "exec"), names)

    await asyncio.to_thread(run)
