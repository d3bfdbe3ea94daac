"""The notebook's show on RabbitMQ, as a user runs it: nodes are processes, and one is killed."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest
from soak import SOAK


@pytest.mark.skipif(not SOAK, reason="takes half a minute: a part of the long forms")
async def test_sessions_are_kept_lost_and_told_or_rebuilt(rabbitmq_url: str) -> None:
    show = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.notebook", "--broker", rabbitmq_url),
        env={**os.environ, "COLUMNS": "100"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(180):
        out, err = await show.communicate()
    assert show.returncode == 0, err.decode() + out.decode()
    assert "was killed" in err.decode()
    assert out.decode().splitlines()[-1].startswith("verified")
