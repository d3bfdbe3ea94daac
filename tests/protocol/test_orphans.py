"""Nothing outlives its bridge, and nothing its node, however that ends."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
from rig import PATIENCE, Rig, breeder, echo, foreign
from soak import SOAK
from started import started_here

import worker_node.reaper
from worker_node.environment import RUN
from worker_node.node import BridgeStartError
from worker_node.reaper import PROGRAM, Reaper
from worker_node.run_id import own_run_id

ROUNDS = 200 if SOAK else 20
AT_ONCE = 3
PROMISE = 5.0  # seconds after the death of a node until nothing is left of it
FAMILY = 6  # processes: a breeder and its descendants


def new_token() -> str:
    return str(random.randint(10**8, 10**9))


def alive(token: str) -> set[psutil.Process]:
    """The processes with the token in their command line: breeders and their descendants."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as command:
                if token.encode() in command.read().split(b"\0"):
                    found.add(psutil.Process(int(name)))
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


async def until(condition: Callable[[], object]) -> None:
    """Wait for it, without taking the processor from those who bring it about: to look at all processes takes time."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.03)


def reaper_of(node: int) -> psutil.Process | None:
    """The reaper of the node with this process id, once it has begun its work."""
    for child in psutil.Process(node).children():
        with suppress(psutil.NoSuchProcess):  # a ZombieProcess is one: killed, and not waited for yet
            if str(PROGRAM) in child.cmdline():
                return child
    return None


def reapers(node: int) -> list[int]:
    """The reapers of the node with this process id, which may be dead."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if str(PROGRAM) in command and f":{node}:" in command[-1]:
            found.append(process.pid)
    return found


@asynccontextmanager
async def victim(token: str, said: bytes = b"serving") -> AsyncIterator[asyncio.subprocess.Process]:
    """A node in a process of its own, that has said so; killed at the end, and then nothing of it may be left."""
    program = Path(__file__).with_name("victim.py")
    environment = {**os.environ, "PYTHONPATH": str(program.parent)}
    node = await asyncio.create_subprocess_exec(
        sys.executable, str(program), token, stdout=subprocess.PIPE, env=environment
    )
    assert node.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while (line := await node.stdout.readline()) != said + b"\n":
                assert line
        yield node
    finally:
        if node.returncode is None:
            node.kill()
        await node.wait()
        await until(lambda: not alive_but(node.pid, token))


def alive_but(pid: int, token: str) -> set[psutil.Process]:
    return {process for process in alive(token) if process.pid != pid}


async def both_families(pid: int, token: str) -> None:
    """Wait until all of a victim's are there: in the middle of its exec a process shows no command line."""
    await until(lambda: len(alive_but(pid, token)) == 2 * FAMILY)


# The death of a node.


async def test_nothing_outlives_a_node_that_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every other one while it starts its bridges, at a random moment."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    turns = asyncio.Semaphore(AT_ONCE)

    victims: dict[str, int] = {}

    async def round_trip(delay: float | None) -> float:
        token = new_token()
        async with turns, victim(token, b"serving" if delay is None else b"starting") as node:
            if delay is None:
                await both_families(node.pid, token)
            else:
                await asyncio.sleep(delay)
            victims[token] = node.pid
            node.kill()
            killed = time.monotonic()
            await node.wait()
            while alive_but(node.pid, token):
                assert time.monotonic() - killed < PROMISE
                await asyncio.sleep(0.05)
            return time.monotonic() - killed

    delays = [moments.uniform(0, 0.3) if number % 2 else None for number in range(ROUNDS)]
    # A group waits for the others when one fails. What the end of the loop cancels while it starts a process waits for
    # ever for pipes that nobody connects any more (CPython 3.11, base_subprocess.py: `_try_finish`).
    async with asyncio.TaskGroup() as rounds:
        trips = [rounds.create_task(round_trip(delay)) for delay in delays]
    took = [trip.result() for trip in trips]
    assert not any(alive(token) for token in victims)  # none was only about to come
    await until(lambda: not any(reapers(pid) for pid in victims.values()))
    with capsys.disabled():
        print(f"\nnodes killed: {len(took)} of {ROUNDS} left nothing behind, the slowest after {max(took):.2f} s")


async def test_a_reaper_that_is_killed_is_replaced_and_the_promise_holds() -> None:
    token = new_token()
    async with victim(token) as node:
        first = reaper_of(node.pid)
        assert first is not None
        first.kill()
        await until(lambda: reaper_of(node.pid) not in (first, None))
        await both_families(node.pid, token)
        node.kill()
        async with asyncio.timeout(PROMISE):
            await until(lambda: not alive_but(node.pid, token))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="this host has no setpriv")
async def test_without_a_reaper_the_bridges_themselves_still_end_with_the_node() -> None:
    token = new_token()
    async with victim(token) as node:
        reaper = reaper_of(node.pid)
        assert reaper is not None
        bridges = {process for process in psutil.Process(node.pid).children() if process != reaper}
        assert len(bridges) == 2
        reaper.suspend()
        try:
            node.kill()
            async with asyncio.timeout(PROMISE):
                await until(lambda: not bridges & alive(token))
            assert len(alive_but(node.pid, token)) == 2 * (FAMILY - 1)  # so it was not the reaper
        finally:
            reaper.resume()


# What an earlier run left.


async def test_the_next_node_kills_what_a_dead_one_left_and_spares_what_belongs_to_a_living_one(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    dead, living = new_token(), new_token()
    async with victim(living) as other, victim(dead) as node:
        reaper = reaper_of(node.pid)
        assert reaper is not None
        reaper.suspend()
        node.kill()
        await node.wait()
        reaper.kill()
        await until(lambda: not reaper.is_running() or reaper.status() == psutil.STATUS_ZOMBIE)
        left = alive(dead)
        assert len(left) >= 2 * (FAMILY - 1)
        await rig.serve(foreign())
        assert not alive(dead)  # before it serves
        await both_families(other.pid, living)
        swept = [record.getMessage() for record in caplog.records if "an earlier run" in record.getMessage()]
        assert len(swept) == 1
        # Another node that starts on this host sweeps too, and what ends by itself is not counted.
        found = re.fullmatch(r"n1: an earlier run left (\d+) process(?:es)? behind: killed", swept[0])
        assert found is not None
        assert 1 <= int(found[1]) <= len(left)


# The death of a bridge.


async def family(token: str) -> set[psutil.Process]:
    await until(lambda: len(alive(token)) == FAMILY)
    return alive(token)


@pytest.mark.parametrize("end", ["die", "recycle", "killed", "stopped"])
async def test_nothing_outlives_its_bridge(rig: Rig, end: str, caplog: pytest.LogCaptureFixture) -> None:
    token = new_token()
    service = await rig.serve(breeder(token), start="lazy")
    await rig.call("echo")
    before = await family(token)
    pid = rig.bridge().process.pid
    match end:
        case "killed":
            os.kill(pid, signal.SIGKILL)
        case "stopped":
            await rig.nodes[0].stop()
        case command:
            await rig.producer.publish("work", command)
    await until(lambda: not before & alive(token))
    if end == "stopped":
        assert not alive(token)
    else:
        await rig.call("echo")
        await family(token)  # of its replacement
        assert service.pool.ready == 1
    line = f"n1: work[0]: bridge {pid} left processes behind: killed"
    await until(lambda: end == "stopped" or line in caplog.messages)


async def test_the_descendants_of_other_bridges_are_spared(rig: Rig) -> None:
    token = new_token()
    service = await rig.serve(breeder(token), bridges=12)
    await until(lambda: service.pool.ready == 12 and len(alive(token)) == 12 * FAMILY)
    before = alive(token)
    await rig.producer.publish("work", "die")
    await until(lambda: len(before & alive(token)) == 11 * FAMILY)
    await until(lambda: service.pool.ready == 12 and len(alive(token)) == 12 * FAMILY)
    assert len(before & alive(token)) == 11 * FAMILY


async def test_an_sdk_bridge_hands_its_run_id_on_and_its_mark_not(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import subprocess\n"
        "from bridge_sdk import Bridge\n"
        "bridge = Bridge()\n"
        "@bridge.command\n"
        "def look() -> list[str]:\n"
        "    return subprocess.run(['env'], capture_output=True, text=True, check=True).stdout.splitlines()\n"
    )
    command = (sys.executable, "-m", "bridge_sdk", "mine")
    await rig.serve(command, environment={"PYTHONPATH": str(tmp_path)})
    ours = [line for line in await rig.call("look") if line.startswith("QUAYBRIDGE_")]
    assert ours == [f"{RUN}={rig.bridge().run}"]


@pytest.mark.parametrize("end", ["killed", "stopped"])
async def test_what_is_started_without_the_run_id_in_a_session_of_its_own_stays(
    rig: Rig, tmp_path: Path, end: str
) -> None:
    token = new_token()
    (tmp_path / "founder.py").write_text(
        "import os\n"
        "from bridge_sdk import Bridge\n"
        "bridge = Bridge()\n"
        "@bridge.command\n"
        "def start(with_it: list[str]) -> int:\n"
        f"    words = [*with_it, 'sleep', '1000', '{token}']\n"
        "    return os.spawnvp(os.P_NOWAIT, words[0], words)\n"
    )
    command = (sys.executable, "-m", "bridge_sdk", "founder")
    await rig.serve(command, environment={"PYTHONPATH": str(tmp_path)})
    pid = await rig.call("start", {"with_it": ["setsid", "env", "-u", RUN]})
    await rig.call("start", {"with_it": ["setsid"]})
    await until(lambda: len(alive(token)) == 2)
    if end == "killed":
        os.kill(rig.bridge().process.pid, signal.SIGKILL)
    else:
        await rig.nodes[0].stop()
    await until(lambda: len(alive(token)) == 1)
    (kept,) = alive(token)
    try:
        assert kept.pid == pid
    finally:
        kept.kill()


# The reaper by itself.


@pytest.fixture
async def reaper(nothing_left: None) -> AsyncIterator[Reaper]:
    made = Reaper("n1")
    await made.start()
    yield made
    await made.stop()


def bystander(run: str) -> subprocess.Popen[bytes]:
    """A process with this run id in its environment."""
    return subprocess.Popen(["sleep", "1000"], env={RUN: run}, start_new_session=True)


async def ended(process: subprocess.Popen[bytes]) -> int:
    await until(lambda: process.poll() is not None)
    return process.returncode


async def test_one_bridge_is_cleared_and_no_other(reaper: Reaper) -> None:
    first, second = reaper.new_bridge(), reaper.new_bridge()
    others = [second, f"{first}0", reaper.run_id, own_run_id(), f"x{first}", ""]
    spared = [bystander(run) for run in others]
    gone = bystander(first)
    reaper.clear(first, "it")
    assert await ended(gone) == -signal.SIGKILL
    await until(lambda: "0 bridges to clear" in repr(reaper))
    assert [process.poll() for process in spared] == [None] * len(spared)
    await reaper.stop()
    ours = {second, f"{first}0", reaper.run_id}
    for run, process in zip(others, spared, strict=True):
        if run not in ours:
            assert process.poll() is None
            process.kill()
        assert await ended(process) == -signal.SIGKILL


async def test_what_a_terminal_sends_does_not_end_it(reaper: Reaper) -> None:
    assert reaper.pid is not None
    assert os.getsid(reaper.pid) == reaper.pid
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP, signal.SIGTERM):
        os.kill(reaper.pid, number)
    pid, bridge = reaper.pid, reaper.new_bridge()
    process = bystander(bridge)
    reaper.clear(bridge, "it")
    assert await ended(process) == -signal.SIGKILL
    assert reaper.pid == pid


async def test_the_next_one_is_told_what_the_last_one_has_not_done(
    reaper: Reaper, caplog: pytest.LogCaptureFixture
) -> None:
    assert reaper.pid is not None
    os.kill(reaper.pid, signal.SIGSTOP)
    processes = []
    for _ in range(3):
        bridge = reaper.new_bridge()
        processes.append(bystander(bridge))
        reaper.clear(bridge, "it")
    pid = reaper.pid
    os.kill(pid, signal.SIGKILL)
    for process in processes:
        assert await ended(process) == -signal.SIGKILL
    assert caplog.messages[0] == f"n1: the reaper ({pid}) ended with signal 9 (Killed): starting another"


async def test_more_than_a_pipe_holds_is_said_as_soon_as_it_takes_it(reaper: Reaper) -> None:
    assert reaper.pid is not None
    os.kill(reaper.pid, signal.SIGSTOP)
    for _ in range(3000):
        reaper.clear(reaper.new_bridge(), "it")
    last = reaper.new_bridge()
    process = bystander(last)
    reaper.clear(last, "it")
    os.kill(reaper.pid, signal.SIGCONT)
    time.sleep(1.0)  # noqa: ASYNC251 - the node reads nothing meanwhile, and what comes back is more than a pipe holds, too
    assert await ended(process) == -signal.SIGKILL
    await until(lambda: "0 bridges to clear" in repr(reaper))


@pytest.mark.parametrize("known", [True, False])
async def test_a_reaper_that_is_gone_when_the_node_stops_leaves_nothing_either(reaper: Reaper, known: bool) -> None:
    process = bystander(reaper.new_bridge())
    assert reaper.pid is not None
    os.kill(reaper.pid, signal.SIGKILL)
    if known:
        await until(lambda: reaper.pid is None)
    await reaper.stop()
    assert await ended(process) == -signal.SIGKILL


async def test_a_reaper_that_does_not_end_does_not_hold_up_the_node(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_node.reaper, "STOP_TIMEOUT", 0.1)
    assert reaper.pid is not None
    os.kill(reaper.pid, signal.SIGSTOP)
    await asyncio.gather(reaper.stop(), reaper.stop())
    assert reaper.pid is None
    assert "n1: the reaper does not end, and is killed" in caplog.messages


async def test_one_that_cannot_be_started_is_tried_again(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_node.reaper, "RESTART_INTERVAL", 0.05)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert reaper.pid is not None
    os.kill(reaper.pid, signal.SIGKILL)
    await until(lambda: caplog.messages.count("n1: the reaper cannot be started: No such file or directory") > 1)
    monkeypatch.undo()
    await until(lambda: reaper.pid)


async def test_a_node_without_a_reaper_does_not_start(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    node = rig.node(foreign())
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(BridgeStartError, match="the node's reaper cannot be started: No such file or directory"):
        await node.start()
    assert not started_here()


async def test_it_knows_no_secret_and_holds_nothing_of_the_nodes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUAYBRIDGE_BROKER", "amqp://user:secret@host/")
    inherited = os.dup(0)
    os.set_inheritable(inherited, True)
    try:
        await rig.serve(echo())
        reaper = reaper_of(os.getpid())
        assert reaper is not None
        assert set(reaper.environ()) <= {"LC_CTYPE", "LD_LIBRARY_PATH"}
        assert len(os.listdir(f"/proc/{reaper.pid}/fd")) == 3
    finally:
        os.close(inherited)


async def test_it_is_small_and_there_at_once(
    nothing_left: None, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        made = Reaper("n1")
        await made.start()
        took.append(time.perf_counter() - began)
        assert made.pid is not None
        memory = psutil.Process(made.pid).memory_full_info()
        await made.stop()
    with capsys.disabled():
        print(f"\nreaper: {min(took) * 1000:.0f} ms, {memory.rss >> 20} MB resident, {memory.uss >> 20} MB its own")
    assert min(took) < 1.0
    assert memory.rss < 20 * 1024**2
