"""`quaybridge batch` on RabbitMQ as a person has it: interrupted in every way, and the same in the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import PATIENCE, running
from soak import SOAK

WORKER = ("worker", "--service", "echo", "--bridge", f"{sys.executable} -m examples.echo", "--bridges", "2")
LINES = 2000 if SOAK else 200


def requests() -> Iterator[str]:
    """One line in 50 is broken, one in 70 fails."""
    for n in range(1, LINES + 1):
        match n:
            case _ if n % 50 == 0:
                yield f'{{"seconds": {n}, broken'
            case _ if n % 70 == 0:
                yield '{"seconds": "long"}'
            case _:
                yield f'{{"seconds": {0.001 + n / 1_000_000}}}'


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "requests.jsonl").write_text("".join(f"{line}\n" for line in requests()))
    return tmp_path


class Session:
    """A person at a terminal, in a directory: each command is run by a shell, its stderr on that terminal."""

    def __init__(self, url: str, directory: Path) -> None:
        self._url = url
        self._directory = directory
        self.replies = directory / "replies.jsonl"
        self.failures = directory / "replies.failures.jsonl"

    @property
    def answered(self) -> int:
        return self.replies.read_bytes().count(b"\n") if self.replies.exists() else 0

    async def run(
        self, arguments: str, *, interrupt: int | None = None, when: Callable[[], bool] = lambda: True
    ) -> tuple[int, str]:
        """The exit status of `quaybridge batch` with these arguments, and what the terminal showed."""
        terminal, screen = os.openpty()
        command = (
            f"exec {sys.executable} -m quaybridge batch echo sleep --broker {self._url} --in-flight 20 {arguments}"
        )
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", command),
            cwd=self._directory,
            stdin=screen,
            stderr=screen,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(screen)
        shown: list[bytes] = []
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()

        def look() -> None:
            try:
                shown.append(os.read(terminal, 65536))
            except OSError:  # the other side is closed
                loop.remove_reader(terminal)
                gone.set()

        loop.add_reader(terminal, look)
        async with asyncio.timeout(PATIENCE):
            if interrupt is not None:
                while not when():
                    assert process.returncode is None, b"".join(shown).decode()
                    await asyncio.sleep(0.005)
                process.send_signal(interrupt)
            status = await process.wait()
            await gone.wait()
        os.close(terminal)
        return status, b"".join(shown).decode()


async def test_interrupted_and_gone_on_with_it_is_the_same(rabbitmq_url: str, directory: Path) -> None:
    async with running(*WORKER, "--broker", rabbitmq_url) as worker:
        await worker.said("serving")
        session = Session(rabbitmq_url, directory)
        status, shown = await session.run("< requests.jsonl > replies.jsonl")
        assert status == 3
        assert " lines, " in shown  # the bar
        assert "/s" in shown
        broken, failed = LINES // 50, LINES // 70 - LINES // 350
        succeeded = LINES - broken - failed
        assert f"{succeeded:,} answered, {failed} failed, {broken} broken lines: see" in shown
        whole = session.replies.read_bytes(), session.failures.read_bytes()
        assert [json.loads(line)["line"] for line in whole[1].splitlines()] == [
            n for n in range(1, LINES + 1) if n % 50 == 0 or n % 70 == 0
        ]

        status, shown = await session.run(
            "--in-flight 20 < requests.jsonl > replies.jsonl",
            interrupt=signal.SIGKILL,
            when=lambda: LINES // 6 < session.answered < succeeded,
        )
        assert status == -signal.SIGKILL
        with session.replies.open("ab") as torn:
            torn.write(b'{"line":')
        for number, much in ((signal.SIGINT, LINES // 3), (signal.SIGTERM, LINES // 2)):
            assert session.answered < much
            status, shown = await session.run(
                "--in-flight 20 --resume < requests.jsonl >> replies.jsonl",
                interrupt=number,
                when=lambda much=much: session.answered > much,  # type: ignore[misc]
            )
            assert status == 130
            assert "interrupted after line " in shown
            assert "Traceback" not in shown
        assert session.answered < succeeded
        status, shown = await session.run("--resume < requests.jsonl >> replies.jsonl")
        assert status == 3
        assert f"{succeeded:,} answered, {failed} failed, {broken} broken lines" in shown
        assert (session.replies.read_bytes(), session.failures.read_bytes()) == whole


async def test_what_cannot_be_done_is_told(rabbitmq_url: str, directory: Path) -> None:
    session = Session(rabbitmq_url, directory)
    status, shown = await session.run("< requests.jsonl > replies.jsonl")
    assert status == 1
    assert "stopped after line 0: --resume, and >> for the replies, goes on from there" in shown
    assert "unknown_service: " in shown


async def test_the_status_says_whether_all_were_answered_some_failed_or_lines_were_broken(
    rabbitmq_url: str, directory: Path
) -> None:
    async with running(*WORKER, "--broker", rabbitmq_url) as worker:
        await worker.said("serving")
        session = Session(rabbitmq_url, directory)
        good, failing, broken = '{"seconds": 0}\n', '{"seconds": "long"}\n', "[]\n"
        for lines, expected in ((good, 0), (good + failing, 1), (good + failing + broken, 3), ("", 0)):
            (directory / "requests.jsonl").write_text(lines)
            status, shown = await session.run("< requests.jsonl > replies.jsonl")
            assert status == expected, shown
            assert session.answered == lines.count(good)
            assert session.failures.exists() == (expected != 0)
