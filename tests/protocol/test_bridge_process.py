"""One bridge process: what it reports, whatever the program does."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest
from rig import PATIENCE, PYTHON, descriptors, foreign, misbehave, until
from started import started_here

from bridge_protocol.errors import FrameKind
from bridge_protocol.frames import DEFAULT_LIMIT
from bridge_protocol.messages import Request, Result, decode_message, encode_request
from worker_node import pipe
from worker_node.bridge_process import (
    HELD_UP,
    QUOTE_BYTES,
    QUOTE_SECONDS,
    BridgeExit,
    BridgeProcess,
    Direction,
    Garbage,
    Stall,
)
from worker_node.pipe import USUAL_SIZE, WIDE_SIZE

MEGABYTE = 1024 * 1024


class Witness:
    """Starts one process, and writes down what it reports, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self.times: dict[str, float] = {}
        self.process: BridgeProcess | None = None

    def start(
        self,
        command: tuple[str, ...],
        *,
        environment: dict[str, str] | None = None,
        directory: str | None = None,
        frame_limit: int = DEFAULT_LIMIT,
        write_timeout: float = PATIENCE,
        frame_timeout: float = PATIENCE,
        protocol_fd: bool = False,
    ) -> BridgeProcess:
        self.process = BridgeProcess(
            command,
            environment=environment if environment is not None else {"PATH": os.environ["PATH"]},
            directory=directory,
            frame_limit=frame_limit,
            write_timeout=write_timeout,
            frame_timeout=frame_timeout,
            protocol_fd=protocol_fd,
            on_stalled=self._writer("stalled"),
            on_payload=self._writer("payload"),
            on_doomed=lambda: self._write("doomed", None),
            on_garbage=self._writer("garbage"),
            on_closed=self._writer("closed"),
            on_exit=self._writer("exit"),
            on_stderr=self._writer("stderr"),
        )
        return self.process

    def _writer(self, what: str) -> Callable[[Any], None]:
        return lambda value: self._write(what, value)

    def _write(self, what: str, value: Any) -> None:
        self.log.append((what, value))
        self.times.setdefault(what, time.monotonic())

    def said(self, what: str) -> list[Any]:
        return [value for kind, value in self.log if kind == what]

    @property
    def kinds(self) -> list[str]:
        """What was reported, stderr left out."""
        return [kind for kind, _ in self.log if kind != "stderr"]

    async def first(self, what: str) -> Any:
        await until(lambda: self.said(what))
        return self.said(what)[0]

    async def end(self) -> BridgeExit:
        ended = await self.first("exit")
        assert isinstance(ended, BridgeExit)
        return ended

    def ask(self, command: str = "misbehave", args: dict[str, Any] | None = None) -> None:
        assert self.process is not None
        self.process.send(encode_request(Request(id=1, command=command, args=args or {})))

    async def result(self) -> Any:
        message = decode_message(await self.first("payload"))
        assert isinstance(message, Result)
        return message.result


@pytest.fixture
async def witness(nothing_left: None) -> AsyncIterator[Witness]:
    made = Witness()
    yield made
    if made.process is not None:
        made.process.send_signal(signal.SIGKILL)
        await made.end()


def shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


# Starting.


async def test_a_frame_goes_in_a_frame_comes_out_and_the_end_of_its_input_ends_it(witness: Witness) -> None:
    process = witness.start(foreign())
    assert repr(process) == f"<BridgeProcess {process.pid} up 0 s>"
    witness.ask("echo", {"text": "hi"})
    assert await witness.result() == {"status": "ok", "echoed": {"text": "hi"}}
    process.end_input()
    ended = await witness.end()
    assert (ended.code, ended.signal, ended.in_frame) == (0, None, False)
    assert str(ended) == "exit code 0"
    assert witness.kinds == ["payload", "doomed", "exit"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("/no/such/program",), {}),
        (("/",), {}),
        (("/etc/passwd",), {}),
        (foreign(), {"directory": "/no/such/directory"}),
        (foreign(), {"environment": {"A=B": "1"}}),
        (foreign(), {"environment": {"A": "nul\0"}}),
    ],
)
async def test_a_program_that_cannot_be_started_leaves_nothing(
    witness: Witness, command: tuple[str, ...], options: dict[str, Any]
) -> None:
    before = descriptors()
    with pytest.raises((OSError, ValueError)):
        witness.start(command, **options)
    assert descriptors() == before
    assert witness.log == []


@pytest.mark.parametrize("room", range(8))
async def test_without_free_descriptors_nothing_starts_and_nothing_leaks(witness: Witness, room: int) -> None:
    before = descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the first that is free
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            witness.start(foreign())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert descriptors() == before
    assert not started_here()


async def test_a_process_that_cannot_be_watched_does_not_live(
    witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    started: list[int] = []

    def refused(pid: int, flags: int = 0) -> int:
        started.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refused)
    with pytest.raises(OSError, match="Too many"):
        witness.start(foreign())
    assert not psutil.pid_exists(started[0])
    assert descriptors() == before


async def test_it_has_a_session_of_its_own(witness: Witness) -> None:
    process = witness.start(foreign())
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid


# The seed's lesson.


async def test_stderr_never_reaches_the_frame_stream(witness: Witness) -> None:
    """Frames on stdout and the same bytes on stderr, at once: each arrives where it was sent, and only there."""
    payload = b'{"id":1,"success":true,"result":"' + b"x" * 3000 + b'"}'
    frame = len(payload).to_bytes(4, "big") + payload
    program = (
        "import os, sys, threading\n"
        f"frame = {frame!r}\n"
        "noise = threading.Thread(target=lambda: [os.write(2, frame + b'\\n') for _ in range(300)])\n"
        "noise.start()\n"
        "for _ in range(300):\n"
        "    os.write(1, frame)\n"
        "noise.join()\n"
    )
    witness.start((*PYTHON, "-c", program))
    ended = await witness.end()
    assert ended.code == 0
    assert witness.said("payload") == [payload] * 300
    assert len([line for line in witness.said("stderr") if line.endswith('"}')]) == 300
    assert not witness.said("garbage")


async def test_a_bridge_that_merges_its_stderr_into_stdout_is_caught_and_quoted(witness: Witness) -> None:
    witness.start(misbehave("stderr_merged"))
    witness.ask()
    garbage = await witness.first("garbage")
    assert isinstance(garbage, Garbage)
    assert garbage.error.kind is FrameKind.FRAME_TOO_LARGE
    assert '"Traceback (most recent call last)' in str(garbage)
    assert "(RuntimeError: this traceback lands on stdout)" in str(garbage)
    assert "looks like text" in str(garbage)
    assert (await witness.end()).code == 1


# Garbage.


async def test_garbage_dooms_at_once_and_is_told_when_more_of_it_has_come(witness: Witness) -> None:
    witness.start(shell("printf 'Warn'; sleep 0.05; printf 'ing: \\033[31mthe model'; exec sleep 1000"))
    garbage = await witness.first("garbage")
    assert garbage.said == b"Warning: \x1b[31mthe model"
    assert garbage.quoted(10) == r'"Warning: \x1b"…'
    assert witness.kinds == ["doomed", "garbage"]
    assert witness.times["garbage"] - witness.times["doomed"] >= QUOTE_SECONDS - 0.01


async def test_garbage_of_a_process_that_ends_is_told_without_waiting(witness: Witness) -> None:
    witness.start(shell("printf 'Traceback: everything is lost'"))
    await witness.end()
    assert witness.kinds == ["doomed", "garbage", "exit"]
    assert witness.times["exit"] - witness.times["doomed"] < QUOTE_SECONDS
    assert b"everything is lost" in witness.said("garbage")[0].said


async def test_a_flood_of_garbage_is_read_and_forgotten(witness: Witness) -> None:
    witness.start(shell("yes"))
    garbage = await witness.first("garbage")
    assert len(garbage.said) <= QUOTE_BYTES


async def test_what_came_before_the_garbage_counts(witness: Witness) -> None:
    witness.start(misbehave("reply_then_print"))
    witness.ask()
    assert await witness.result() == "as if nothing happened"
    await witness.first("garbage")
    assert witness.kinds == ["payload", "doomed", "garbage"]


# Frames that stop half-way.


async def test_a_frame_that_is_not_read_in_its_time_is_told_and_told_again(witness: Witness) -> None:
    process = witness.start(shell("exec sleep 1000"), write_timeout=0.3)
    began = time.monotonic()
    witness.ask("echo", {"text": "x" * MEGABYTE})
    witness.ask("echo")
    assert process.unread == 2
    stall = await witness.first("stalled")
    assert isinstance(stall, Stall)
    assert stall.direction is Direction.TO_BRIDGE
    assert re.search(r"does not read: [\d,]{7,} bytes of a frame .* stdin after the write timeout of 0.3 s", str(stall))
    assert 0.29 < witness.times["stalled"] - began < 3
    await until(lambda: len(witness.said("stalled")) == 2)


@pytest.mark.parametrize("frames", [1, 5])
async def test_a_bridge_that_reads_slowly_is_not_one_that_does_not_read(witness: Witness, frames: int) -> None:
    program = "import os, time\nfor _ in range(5):\n    time.sleep(0.3)\n    left = 200_000\n"
    program += "    while left: left -= len(os.read(0, left))\n"
    process = witness.start((*PYTHON, "-c", program), write_timeout=1.0)
    for _ in range(frames):
        process.send(b"x" * (1_000_000 // frames - 4))
    assert process.unread >= frames - 1
    await until(lambda: process.unread == 0)
    await witness.end()
    assert not witness.said("stalled")


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (
            "half_header_then_stall",
            r'half a frame, 3 of the 4 bytes of its length, after the frame timeout of 0.3 s: "',
        ),
        ("half_frame_then_stall", r'half a frame, 2\d of its 6\d bytes, after the frame timeout of 0.3 s: "{"id": 1, '),
        ("trickle", r"half a frame, \d+ of its 100,\d+ bytes, after the frame timeout of 0.3 s"),
        ("length_counts_itself", r"looks whole: does its length count the four bytes of the length itself\?"),
    ],
)
async def test_a_frame_that_is_not_whole_in_its_time_is_told(witness: Witness, mode: str, said: str) -> None:
    witness.start(misbehave(mode), frame_timeout=0.3)
    witness.ask()
    stall = await witness.first("stalled")
    assert isinstance(stall, Stall)
    assert stall.direction is Direction.FROM_BRIDGE
    assert re.search(said, str(stall)), stall
    await until(lambda: len(witness.said("stalled")) == 2)


async def test_each_frame_has_its_own_time_to_be_written(witness: Witness) -> None:
    # Every write ends in the middle of a frame: one is always begun, and none is late.
    program = "import os, time\nfor _ in range(6):\n    os.write(1, b'\\0\\0\\0\\2{')\n    time.sleep(0.1)\n"
    program += "    os.write(1, b'}\\0\\0\\0\\2{')\n    time.sleep(0.1)\n    os.write(1, b'}')\n"
    witness.start((*PYTHON, "-c", program), frame_timeout=0.9)
    await witness.end()
    assert len(witness.said("payload")) == 12
    assert not witness.said("stalled")


async def test_a_node_that_was_held_up_itself_does_not_blame_the_bridge(witness: Witness) -> None:
    process = witness.start(misbehave("reply_over_limit", 3 * MEGABYTE), frame_timeout=0.5)
    witness.ask()
    while not process._decoder.in_frame:
        await asyncio.sleep(0)
    time.sleep(HELD_UP + 0.7)  # noqa: ASYNC251 (as SIGSTOP would have it)
    await witness.first("payload")
    assert not witness.said("stalled")


# A private pair of descriptors for frames.

# Copies frames, and talks beside them.
TALKER = """
import os
source, sink = map(int, os.environ.pop("QUAYBRIDGE_PROTOCOL_FDS").split(","))
os.write(1, b"stdin holds %r\\n" % os.read(0, 10))
while data := os.read(source, 65536):
    os.write(1, b"Loading model weights\\n")
    os.write(2, b"and a warning\\n")
    os.write(sink, data)
os.write(1, b"descriptors %r\\n" % sorted(map(int, os.listdir("/proc/self/fd"))))
"""


async def test_with_descriptors_of_their_own_frames_meet_nothing_that_is_printed(witness: Witness) -> None:
    process = witness.start((*PYTHON, "-c", TALKER), protocol_fd=True)
    for _ in range(3):
        process.send(b'{"n":1}')
        await asyncio.sleep(0)
    await until(lambda: len(witness.said("payload")) == 3)
    process.end_input()
    ended = await witness.end()
    assert ended.code == 0
    lines = witness.said("stderr")
    assert lines[0] == "stdin holds b''"
    assert {"Loading model weights", "and a warning"} <= set(lines)
    assert len(lines[-1].split(",")) == 6, lines  # 0, 1, 2, the pair, and the one that looks
    assert ended.stderr[-1] == lines[-1]
    assert not witness.said("garbage")


async def test_a_private_descriptor_that_is_closed_is_told_by_its_name(witness: Witness) -> None:
    program = "import os, time; os.close(int(os.environ['QUAYBRIDGE_PROTOCOL_FDS'].split(',')[1])); time.sleep(1000)"
    witness.start((*PYTHON, "-c", program), protocol_fd=True)
    assert await witness.first("closed") == "descriptor for replies"


# Where it hangs.


async def test_only_a_process_of_its_own_group_is_asked_for_its_stacks(witness: Witness) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "1000")
    try:
        process = witness.start(shell("sleep 1000"))
        process.ask_stacks(stranger.pid, signal.SIGTERM)
        process.ask_stacks(2**31 - 1, signal.SIGTERM)
        process.ask_stacks(process.pid, signal.SIGTERM)
        assert (await witness.end()).signal == signal.SIGTERM
        process.ask_stacks(process.pid, signal.SIGTERM)
    finally:
        stranger.kill()
        await stranger.wait()
    assert stranger.returncode == -signal.SIGKILL


# Pipes that are closed.


async def test_a_closed_stdout_is_told_if_the_process_lives_on(witness: Witness) -> None:
    witness.start(misbehave("closes_stdout"))
    witness.ask()
    assert await witness.first("closed") == "stdout"
    assert witness.kinds == ["doomed", "closed"]


async def test_a_closed_stdin_is_told_when_something_is_written_to_it(witness: Witness) -> None:
    witness.start(misbehave("closes_stdin"))
    witness.ask()
    assert await witness.result() == "as if nothing happened"
    assert witness.kinds == ["payload"]
    witness.ask("echo")
    assert await witness.first("closed") == "stdin"


async def test_a_process_that_closes_its_output_and_then_ends_simply_ended(witness: Witness) -> None:
    witness.start(shell("exec 1>&-; sleep 0.05; exit 5"))
    assert (await witness.end()).code == 5
    assert witness.kinds == ["doomed", "exit"]


async def test_a_process_that_ends_in_mid_frame_says_so(witness: Witness) -> None:
    witness.start(misbehave("truncated_then_exit"))
    witness.ask()
    ended = await witness.end()
    assert ended.in_frame
    assert str(ended) == "exit code 0, in the middle of a frame"
    assert not witness.said("payload")
    assert not witness.said("garbage")


# The end.


@pytest.mark.parametrize(
    ("mode", "code", "number", "text"),
    [
        ("exit0_mid_request", 0, None, "exit code 0"),
        ("exit1_mid_request", 1, None, "exit code 1"),
        ("segfault", None, signal.SIGSEGV, "signal SIGSEGV"),
        ("kill_self", None, signal.SIGKILL, "signal SIGKILL"),
    ],
)
async def test_how_it_ended_is_told(witness: Witness, mode: str, code: int, number: int, text: str) -> None:
    witness.start(misbehave(mode))
    witness.ask()
    ended = await witness.end()
    assert (ended.code, ended.signal, str(ended)) == (code, number, text)
    assert 0 < ended.uptime < PATIENCE


async def test_a_signal_without_a_name_has_its_number(witness: Witness) -> None:
    number = signal.SIGRTMIN + 3
    process = witness.start(foreign())
    os.kill(process.pid, number)
    assert str(await witness.end()) == f"signal {number}"


async def test_its_last_frames_and_lines_come_before_its_end(witness: Witness) -> None:
    witness.start(shell(r"""printf '\0\0\0\2{}\0\0\0\2{}'; printf 'last\nwords' >&2; exit 4"""))
    ended = await witness.end()
    assert [bytes(payload) for payload in witness.said("payload")] == [b"{}", b"{}"]
    assert witness.said("stderr") == ["last", "words"]
    assert ended.stderr == ("last", "words")
    assert witness.log[-1] == ("exit", ended)


async def test_a_grandchild_that_holds_the_pipes_neither_hides_its_end_nor_survives_it(witness: Witness) -> None:
    witness.start(misbehave("forks_sleep"))
    witness.ask()
    grandchild = await witness.result()
    assert witness.process is not None
    os.kill(witness.process.pid, signal.SIGKILL)
    assert (await witness.end()).signal == signal.SIGKILL
    await until(lambda: not psutil.pid_exists(grandchild) or _is_zombie(grandchild))


async def test_a_grandchild_that_left_the_group_does_not_hide_its_end_either(witness: Witness) -> None:
    witness.start(misbehave("forks_setsid_sleep"))
    witness.ask()
    grandchild = await witness.result()
    try:
        assert witness.process is not None
        os.kill(witness.process.pid, signal.SIGKILL)
        assert (await witness.end()).signal == signal.SIGKILL
    finally:
        os.kill(grandchild, signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    """Nobody reaps the orphans of a container whose first process does not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_what_it_left_in_its_group_is_told(witness: Witness) -> None:
    # So many that one is there still when it is looked for.
    witness.start(shell("for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; exit 0"))
    assert (await witness.end()).left_group


async def test_that_it_left_nothing_in_its_group_is_told(witness: Witness) -> None:
    witness.start(shell("sleep 0 & wait; exit 0"))
    assert not (await witness.end()).left_group


async def test_a_signal_reaches_its_whole_group(witness: Witness) -> None:
    process = witness.start(misbehave("forks_sleep"))
    witness.ask()
    grandchild = await witness.result()
    process.send_signal(signal.SIGTERM)
    await witness.end()
    await until(lambda: not psutil.pid_exists(grandchild) or _is_zombie(grandchild))


async def test_what_is_said_to_a_process_that_is_gone_goes_nowhere(witness: Witness) -> None:
    process = witness.start(foreign())
    process.end_input()
    await witness.end()
    process.send(b"{}")
    process.send_signal(signal.SIGKILL)
    process.end_input()
    assert witness.kinds == ["doomed", "exit"]


async def test_its_memory_peak_is_told_where_linux_can_tell_it(witness: Witness) -> None:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + 50  # megabytes: more than this process had
    process = witness.start(misbehave("leak", size))
    witness.ask()
    await witness.first("payload")
    process.send_signal(signal.SIGKILL)
    peak = (await witness.end()).memory_peak
    assert peak is not None
    assert size * MEGABYTE < peak < (size + 100) * MEGABYTE


async def test_a_memory_peak_that_was_looked_at_is_told_though_it_is_less_than_the_nodes_own(witness: Witness) -> None:
    process = witness.start(misbehave("leak", 20))
    witness.ask()
    await witness.first("payload")
    process.look()
    process.send_signal(signal.SIGKILL)
    peak = (await witness.end()).memory_peak
    assert peak is not None
    assert 20 * MEGABYTE < peak < 120 * MEGABYTE
    process.look()


async def test_a_memory_peak_that_would_be_the_nodes_own_is_not_told(witness: Witness) -> None:
    witness.start(shell("exit 0"))
    assert (await witness.end()).memory_peak is None


# Much at once.


async def test_one_that_something_else_waited_for_ends_once_and_how_is_not_known(witness: Witness) -> None:
    process = witness.start(shell("exec sleep 1000"))
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([psutil.Process(process.pid)], timeout=PATIENCE)  # takes its exit status, for it is a child
    ended = await witness.end()
    assert (ended.code, ended.signal) == (255, None)
    assert witness.kinds[-1] == "exit"


async def test_ten_megabytes_go_both_ways_at_once(witness: Witness) -> None:
    text = "x" * (10 * MEGABYTE)
    process = witness.start(foreign())
    for _ in range(3):
        witness.ask("echo", {"text": text})
    await until(lambda: len(witness.said("payload")) == 3)
    assert all(decode_message(payload) for payload in witness.said("payload"))
    assert all(len(payload) > 10 * MEGABYTE for payload in witness.said("payload"))
    process.end_input()
    assert (await witness.end()).code == 0


def pipe_size(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)


async def test_a_pipe_is_widened_when_it_overflows_and_only_then(witness: Witness) -> None:
    process = witness.start(shell("exec cat"))
    pipes = process._stdin, process._stdout
    process.send(b"{%s}" % (b"x" * 1000))
    await until(lambda: len(witness.said("payload")) == 1)
    assert [pipe_size(each) for each in pipes] == [USUAL_SIZE, USUAL_SIZE]
    process.send(b"{%s}" % (b"x" * USUAL_SIZE))
    await until(lambda: len(witness.said("payload")) == 2)
    assert pipe_size(process._stdin) == WIDE_SIZE
    process.send(b"{%s}" % (b"x" * 10 * MEGABYTE))
    await until(lambda: pipe_size(process._stdout) == WIDE_SIZE)


async def test_pipes_that_cannot_be_widened_carry_as_much(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "WIDE_SIZE", 2**40)
    process = witness.start(shell("exec cat"))
    payloads = [b"{%s}" % (b"%d" % number * size) for number, size in enumerate((USUAL_SIZE, 3 * MEGABYTE, 10))]
    for payload in payloads:
        process.send(payload)
    await until(lambda: len(witness.said("payload")) == 3)
    assert witness.said("payload") == payloads


@pytest.mark.parametrize("piece", [1, 1000, USUAL_SIZE + 1])
async def test_a_large_frame_is_the_same_however_it_is_written(witness: Witness, piece: int) -> None:
    size = 3 * USUAL_SIZE
    program = (
        f"import os; size = {size}; piece = {piece}\n"
        "payload = b'{' + bytes(range(32, 127)) * (size // 95) + b'}'\n"
        "frame = len(payload).to_bytes(4, 'big') + payload\n"
        "stream = frame + frame + b'\\0\\0\\0\\2{}'\n"
        "view = memoryview(stream)\n"
        "for at in range(0, len(stream), piece):\n"
        "    rest = view[at : at + piece]\n"
        "    while rest:\n"
        "        rest = rest[os.write(1, rest):]\n"
    )
    witness.start((*PYTHON, "-c", program))
    await witness.end()
    large = b"{" + bytes(range(32, 127)) * (size // 95) + b"}"
    assert witness.said("payload") == [large, large, b"{}"]


async def test_writing_to_a_process_that_does_not_read_returns_at_once(witness: Witness) -> None:
    witness.start(shell("exec sleep 1000"))
    body = {"text": "x" * (10 * MEGABYTE)}
    began = time.monotonic()
    witness.ask("echo", body)
    witness.ask("echo", body)
    assert time.monotonic() - began < 1.0
    ticks = 0
    for _ in range(20):
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks == 20
    assert witness.log == []


async def test_many_small_frames_written_while_it_is_busy_arrive_in_order(witness: Witness) -> None:
    process = witness.start(shell("sleep 0.1; exec cat"))  # gives back what it gets, frame by frame
    payloads = [b'{"n":%d,"x":"%s"}' % (n, b"y" * (n % 700)) for n in range(3000)]
    for payload in payloads:
        process.send(payload)
    await until(lambda: len(witness.said("payload")) == len(payloads))
    assert [bytes(payload) for payload in witness.said("payload")] == payloads


async def test_a_flood_of_stderr_is_drained_and_takes_no_memory(witness: Witness) -> None:
    size = 64 * MEGABYTE
    process = witness.start(misbehave("stderr_flood", size))
    before = psutil.Process().memory_info().rss
    witness.ask()
    assert await witness.result() == "as if nothing happened"
    process.end_input()
    ended = await witness.end()
    assert psutil.Process().memory_info().rss - before < 20 * MEGABYTE
    (line,) = witness.said("stderr")
    assert f"{size - 8192:,} bytes more" in line
    assert len(ended.stderr) == 1


async def test_stderr_is_made_safe_for_a_log(witness: Witness) -> None:
    process = witness.start(misbehave("stderr_binary"))
    witness.ask()
    await witness.result()
    process.end_input()
    await witness.end()
    lines = witness.said("stderr")
    assert len(lines) == 3  # a newline among all bytes, and two more after
    assert all(line.replace("\t", "").isprintable() for line in lines)
    assert r"\x1b[31mred" in lines[1]


def test_the_test_bridges_need_nothing_but_python() -> None:
    """They stand for other people's programs: nothing of ours may be in them."""
    for command in (foreign(), misbehave("hang")):
        answer = subprocess.run(command, input=b"", capture_output=True, timeout=PATIENCE, check=False)
        assert answer.returncode == 0
        assert answer.stdout == b""


# Holding.

# Frames in one write, and half of another a moment later.
FRAMES = r"""printf '\0\0\0\3{1}\0\0\0\3{2}\0\0\0\3{3}\0\0\0\3{4'; read line; printf '}'; read line"""


async def test_one_that_is_held_in_the_middle_of_what_was_read_says_the_rest_later(witness: Witness) -> None:
    process = witness.start(shell(FRAMES), frame_timeout=0.2)
    real = witness._write

    def hold_at_two(what: str, value: Any) -> None:
        real(what, value)
        if value == b"{2}":
            process.hold(True)
            process.hold(True)

    witness._write = hold_at_two  # type: ignore[method-assign]
    await until(lambda: witness.said("payload") == [b"{1}", b"{2}"])
    await asyncio.sleep(0.4)  # longer than a frame may take
    assert witness.kinds == ["payload", "payload"], "no more is reported, and no frame is late that nobody reads"
    witness._write = real  # type: ignore[method-assign]
    process.hold(False)
    await until(lambda: witness.said("payload") == [b"{1}", b"{2}", b"{3}"])
    await witness.first("stalled")  # the one that is begun has to end in its time again
    assert process._stdin >= 0
    os.write(process._stdin, b"\n")
    await until(lambda: witness.said("payload")[-1] == b"{4}")
    process.end_input()
    await witness.end()


async def test_what_one_wrote_before_it_died_is_reported_though_it_was_held(witness: Witness) -> None:
    process = witness.start(shell(r"read line; printf '\0\0\0\3{1}\0\0\0\3{2}'; kill -9 $$"))
    process.hold(True)
    os.write(process._stdin, b"\n")
    assert (await witness.end()).signal == signal.SIGKILL
    assert witness.said("payload") == [b"{1}", b"{2}"]


async def test_one_that_is_held_is_read_no_further_than_its_pipe_holds(witness: Witness) -> None:
    process = witness.start(shell(r"while :; do printf '\0\0\0\3{1}'; done"))
    await witness.first("payload")
    process.hold(True)
    count = len(witness.log)
    await asyncio.sleep(0.2)
    assert len(witness.log) == count
    process.hold(False)
    await until(lambda: len(witness.log) > count)
