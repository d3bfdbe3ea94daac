"""A node with real bridges, from the producer's call to its answer: every way a bridge can go wrong, and the end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import resource
import signal
import sys
import textwrap
import time
from collections import deque
from pathlib import Path
from typing import Any

import psutil
import pytest
from rig import PATIENCE, PYTHON, Rig, children, echo, foreign, misbehave, until, with_sdk
from started import started_here

from bridge_protocol.envelope import request_properties
from bridge_protocol.errors import (
    ApplicationError,
    BadRequest,
    BridgeCrashed,
    BridgeTimeout,
    Code,
    CodedError,
    DeadlineExceeded,
    ProtocolViolation,
    TooLarge,
    UnknownService,
)
from bridge_protocol.messages import Request, encode_request
from bridge_protocol.topology import EXCHANGE
from broker.contract import MAX_PREFETCH, Consumer, Message
from broker.memory import MemoryChannel
from worker_node import bridges
from worker_node.core.lookahead import MOST_PER_SLOT, SAMPLES
from worker_node.core.slot import Phase
from worker_node.dispatcher import Dispatcher
from worker_node.environment import RUN
from worker_node.node import BridgeStartError, Node
from worker_node.out_of_memory import OutOfMemoryKills

MEGABYTE = 1024 * 1024
QUEUE, DEAD = "quaybridge.work", "quaybridge.work.dead"
# Begins the program of a bridge of a test's own.
SPEAKER = """
import json, os, struct
def requests():
    while header := os.read(0, 4):
        left, asked = struct.unpack(">I", header)[0], b""
        while len(asked) < left:
            asked += os.read(0, left - len(asked))
        yield json.loads(asked)
def tell(id, **said):
    told = json.dumps({"id": id, **said}).encode()
    told = struct.pack(">I", len(told)) + told
    while told:
        told = told[os.write(1, told):]
"""


async def failure(
    rig: Rig, command: str = "misbehave", args: dict[str, Any] | None = None, **options: Any
) -> CodedError:
    """What a call that must fail raises."""
    with pytest.raises(CodedError) as raised:
        await rig.call(command, args, **options)
    return raised.value


def handed_back(rig: Rig) -> int:
    return sum(counts.handed_back for node in rig.nodes for counts in node.counts.values())


def states(service: Dispatcher) -> list[str]:
    return [slot.state for slot in service.pool.slots if slot.seat is not None]


def bridge_lines(caplog: pytest.LogCaptureFixture, pid: int) -> list[str]:
    """The warnings about a bridge."""
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in texts if f"bridge {pid} " in text]


def hold_four(service: Dispatcher) -> None:
    """Have the node hold four requests in waiting, as if those before had been short: within a second it does."""
    for _ in range(SAMPLES):
        service.lookahead.ran(0.012)


# Serving.


@pytest.mark.parametrize("command", [foreign(), echo()])
async def test_a_request_is_carried_out_whoever_wrote_the_bridge(rig: Rig, command: tuple[str, ...]) -> None:
    await rig.serve(command)
    answered = await rig.call("echo", {"text": "hi", "deep": [1, {"a": None}]})
    assert {"text": "hi", "deep": [1, {"a": None}]} in (answered, answered.get("echoed"))


async def test_eight_eager_bridges_start_at_the_same_time(rig: Rig) -> None:
    began = time.monotonic()
    service = await rig.serve(misbehave("slow_start", 0.6), bridges=8)
    await until(lambda: service.pool.ready == 8)
    assert time.monotonic() - began < 4  # one after the other they take 4.8 s, without the interpreters' own start


async def test_a_node_serves_as_soon_as_one_bridge_is_ready(rig: Rig) -> None:
    # The second slot's bridge never is.
    script = f'[ "$SLOT" = 1 ] && exec sleep 1000; exec {" ".join(foreign())}'
    service = await rig.serve(("/bin/sh", "-c", script), bridges=2, environment={"SLOT": "{slot}"})
    assert states(service) == ["idle", "starting"]
    assert (await rig.call("echo"))["status"] == "ok"


async def test_a_lazy_node_starts_nothing_until_work_comes(rig: Rig) -> None:
    service = await rig.serve(foreign(), bridges=2, start="lazy")
    assert states(service) == ["empty", "empty"]
    assert not children()
    await rig.call("echo")
    assert states(service) == ["idle", "empty"]


async def test_a_service_nobody_serves_is_known_at_once(rig: Rig) -> None:
    await rig.serve(foreign())
    began = time.monotonic()
    with pytest.raises(UnknownService, match="'elsewhere'"):
        await rig.producer.call("elsewhere", "echo", timeout=60)
    assert time.monotonic() - began < 5


async def test_several_services_of_one_node_do_not_mix(rig: Rig) -> None:
    other = {"name": "other", "command": misbehave("leak"), "bridges": 1, "stop_timeout": 0.3}
    work = {"name": "work", "command": foreign(), "bridges": 1, "stop_timeout": 0.3}
    await rig.serve(foreign(), of_node={"services": [work, other]})
    assert (await rig.call("echo", {"a": 1}))["echoed"] == {"a": 1}
    assert (await rig.producer.call("other", "echo", {"b": 2})).result == {"b": 2}


async def test_ten_megabytes_go_both_ways_through_all_of_it(rig: Rig) -> None:
    text = "x" * (10 * MEGABYTE)
    await rig.serve(foreign(), bridges=2)
    replies = await asyncio.gather(*(rig.call("echo", {"text": text}) for _ in range(2)))
    assert all(reply["echoed"]["text"] == text for reply in replies)


async def test_requests_are_spread_over_the_bridges(rig: Rig) -> None:
    service = await rig.serve(echo(), bridges=3)
    await until(lambda: service.pool.ready == 3)
    handles = [await rig.producer.submit("work", "sleep", {"seconds": 0.5}) for _ in range(3)]
    await until(lambda: states(service) == ["busy"] * 3)
    assert [(await handle).result for handle in handles] == [0.5] * 3


async def test_a_bridge_that_takes_several_at_once_gets_them(rig: Rig) -> None:
    service = await rig.serve(echo(4))
    handles = [await rig.producer.submit("work", "sleep", {"seconds": 0.1}) for _ in range(5)]
    await until(lambda: len(service.pool.slots[0].runs) == 4)
    assert [(await handle).result for handle in handles] == [0.1] * 5


async def test_an_application_error_is_the_bridges_own_and_the_bridge_lives(rig: Rig) -> None:
    await rig.serve(echo())
    pid = await rig.call("pid")
    error = await failure(rig, "fail", {"message": "no such file"})
    assert isinstance(error, ApplicationError)
    assert "no such file" in error.message
    assert await rig.call("pid") == pid
    assert not rig.broker.messages(DEAD)


async def test_a_bridge_that_asks_for_it_is_replaced_after_its_reply(rig: Rig) -> None:
    await rig.serve(misbehave("recycle"))
    pid = await rig.call("pid")
    assert await rig.call("misbehave") == 1
    assert await rig.call("pid") != pid
    assert rig.nodes[0].counts["work"].failed == 0


# Every way a bridge can go wrong: what the producer is told, and that the node serves on.


@pytest.mark.parametrize(
    ("mode", "exception", "said"),
    [
        ("exit0_mid_request", BridgeCrashed, "exit code 0"),
        ("exit1_mid_request", BridgeCrashed, "exit code 1"),
        ("segfault", BridgeCrashed, "signal SIGSEGV"),
        ("kill_self", BridgeCrashed, "signal SIGKILL"),
        ("truncated_then_exit", BridgeCrashed, "in the middle of a frame"),
        ("forks_sleep_and_dies", BridgeCrashed, "exit code 3"),
        ("garbage_on_stdout", ProtocolViolation, r"\xde\xad\xbe\xef\xde"),
        ("print_then_reply", ProtocolViolation, "Traceback (most recent call last): not really"),
        ("stderr_merged", ProtocolViolation, "this traceback lands on stdout"),
        ("frame_too_large", ProtocolViolation, "4,294,967,295"),
        ("wrong_id", ProtocolViolation, "which it was not asked"),
        ("null_id", ProtocolViolation, r"cannot read that\x1b[2J"),
        ("empty_frame", ProtocolViolation, "empty_frame"),
        ("not_json", ProtocolViolation, "bad_json"),
        ("not_an_object", ProtocolViolation, "bad_start"),
        ("no_success", ProtocolViolation, "bad_envelope"),
        ("invalid_utf8_reply", ProtocolViolation, "bad_utf8"),
        ("raises", BridgeCrashed, "exit code 1"),
        ("json_without_a_length", ProtocolViolation, "looks like JSON without its length"),
        ("little_endian", ProtocolViolation, "looks like a little-endian length"),
        ("closes_stdout", ProtocolViolation, "it closed its stdout and lives on"),
    ],
)
async def test_a_bridge_that_misbehaves_costs_its_request_and_nothing_else(
    rig: Rig, mode: str, exception: type[CodedError], said: str
) -> None:
    service = await rig.serve(misbehave(mode))
    pid = await rig.call("pid")
    began = time.monotonic()
    error = await failure(rig)
    assert type(error) is exception
    assert said in error.message
    assert time.monotonic() - began < 5  # long before the run timeout
    assert error.details["pid"] == pid
    assert error.node == "n1"
    assert await rig.call("echo", {"after": "wards"}) == {"after": "wards"}
    assert await rig.call("pid") != pid
    assert service.settlement.counts.dead == 1
    (letter,) = rig.broker.messages(DEAD)
    assert letter.properties.headers["code"] == exception.code


async def test_text_on_stdout_is_guessed_to_be_text_and_kept_for_a_look(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    service = await rig.serve(misbehave("reply_then_print"))
    pid = await rig.call("pid")
    await rig.call("misbehave")
    await until(lambda: service.pool.slots[0].greeted and rig.bridge().process.pid != pid)
    (line,) = bridge_lines(caplog, pid)
    assert line == (
        f"work[0]: bridge {pid} broke the protocol: it wrote what is no frame: frame_too_large: a length of "
        '1,466,004,078 bytes, the limit is 16,777,216: "Warning: text that nobody asked for\\n" '
        "looks like text: did the program print to stdout, or is its stderr merged into it?"
    )


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("warns", "UserWarning: the model is old"),
        ("raises", "(RuntimeError: the model is gone): is the program's stderr merged into its stdout?"),
    ],
)
async def test_stderr_that_is_merged_into_stdout_is_found_out_at_its_first_word(rig: Rig, mode: str, said: str) -> None:
    # As a port with stderr_to_stdout has it: nobody sees why, and everything after it is read as a length.
    await rig.serve(("/bin/sh", "-c", f"exec {' '.join(misbehave(mode))} 2>&1"), bridges=2)
    for _ in range(3):
        began = time.monotonic()
        error = await failure(rig)
        assert time.monotonic() - began < 5
        assert type(error) is ProtocolViolation
        assert "looks like text" in error.message
        assert "stderr merged into" in error.message
        assert said in error.message
        assert said[:20].strip("(") in error.details["stdout"]
        assert await rig.call("echo", {"after": "wards"}) == {"after": "wards"}


async def test_a_long_text_on_stdout_is_quoted_in_short_and_kept_at_length(rig: Rig) -> None:
    program = SPEAKER + (
        "for asked in requests():\n"
        "    if asked['command'] == 'ping':\n"
        "        tell(asked['id'], success=True, result=1)\n"
        "    else:\n"
        "        os.write(1, b'Loading ' + b'x' * 5000 + b'\\n')\n"
    )
    await rig.serve((*PYTHON, "-c", program))
    error = await failure(rig)
    assert f'"Loading {"x" * 56}"… looks like text' in error.message
    assert error.details["stdout"] == f'"Loading {"x" * 1016}"…'


async def test_a_second_reply_costs_the_bridge_but_not_the_request(rig: Rig) -> None:
    service = await rig.serve(misbehave("two_replies"))
    pid = await rig.call("pid")
    assert await rig.call("misbehave") == "as if nothing happened"
    await until(lambda: service.pool.ready == 1 and rig.bridge().process.pid != pid)
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_a_bridge_that_is_known_to_be_broken_gets_no_further_request(rig: Rig) -> None:
    await rig.serve(misbehave("reply_then_print"))
    pid = await rig.call("pid")
    assert await rig.call("misbehave") == "as if nothing happened"
    assert await rig.call("pid") != pid  # sent at once, while the old bridge may still say more


async def test_a_bridge_that_closed_its_stdin_is_found_out_by_the_next_request(rig: Rig) -> None:
    await rig.serve(misbehave("closes_stdin"))
    assert await rig.call("misbehave") == "as if nothing happened"
    error = await failure(rig, "echo")
    assert isinstance(error, ProtocolViolation)
    assert "it closed its stdin and lives on" in error.message
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_a_reply_over_the_limit_is_too_large_and_not_called_text(rig: Rig) -> None:
    await rig.serve(misbehave("reply_over_limit", 2 * MEGABYTE), frame_limit=MEGABYTE)
    error = await failure(rig)
    assert type(error) is TooLarge
    assert "the limit is 1,048,576" in error.message
    assert "looks like text" not in error.message
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_an_sdk_bridge_is_told_a_limit_of_its_services_own_and_keeps_to_it(rig: Rig) -> None:
    program = """from bridge_sdk import Bridge
bridge = Bridge()
@bridge.command
def text(size: int) -> str:
    return "x" * size
bridge.serve()"""
    service = await rig.serve((sys.executable, "-c", program), frame_limit=MEGABYTE)
    (bridge,) = service.bridges()
    assert len(await rig.call("text", {"size": MEGABYTE - 200})) == MEGABYTE - 200
    with pytest.raises(ApplicationError, match="limit"):
        await rig.call("text", {"size": MEGABYTE + 1})
    assert next(iter(service.bridges())) is bridge


async def test_a_request_over_the_limit_never_reaches_a_bridge(rig: Rig) -> None:
    await rig.serve(foreign(), frame_limit=MEGABYTE)
    error = await failure(rig, "echo", {"text": "x" * MEGABYTE})
    assert type(error) is TooLarge
    assert len(rig.broker.messages(DEAD)) == 1


@pytest.mark.parametrize("mode", ["hang", "hang_ignoring_sigterm", "half_frame_then_stall", "stops_itself"])
async def test_a_bridge_that_hangs_is_killed_after_the_run_timeout(rig: Rig, mode: str) -> None:
    await rig.serve(misbehave(mode), run_timeout=0.3, stop_timeout=0.1)
    pid = await rig.call("pid")
    began = time.monotonic()
    error = await failure(rig)
    assert type(error) is BridgeTimeout
    assert "0.3 s" in error.message
    assert time.monotonic() - began < 2
    assert not psutil.pid_exists(pid)  # it was dead before the failure was told
    assert error.details["signal"] == ("SIGKILL" if mode in ("hang_ignoring_sigterm", "stops_itself") else "SIGTERM")
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_a_bridge_that_ignores_sigterm_is_told_of_in_one_line(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.serve(misbehave("hang_ignoring_sigterm"), run_timeout=0.3, stop_timeout=0.1)
    pid = await rig.call("pid")
    error = await failure(rig)
    assert error.details["timeout"] == "run_timeout"
    (line,) = bridge_lines(caplog, pid)
    assert re.fullmatch(
        rf"work\[0\]: bridge {pid} gave no reply within the run timeout of 0.3 s; it ignored SIGTERM for 0\.\d s "
        r"and was killed: signal SIGKILL after \d\.\d s, 1 served, memory peak \d+\.\d MB",
        line,
    )


@pytest.mark.parametrize("ignored", ["", "trap '' TERM; "])
async def test_a_bridge_that_does_not_read_is_killed_after_the_write_timeout_and_its_request_tried_again(
    rig: Rig, caplog: pytest.LogCaptureFixture, ignored: str
) -> None:
    # What was not read did not run: that is tried again whatever is said of timeouts.
    retry = {"max_attempts": 2, "first_delay": 0.1}
    command = ("/bin/sh", "-c", f"{ignored}exec {' '.join(misbehave('does_not_read'))}")
    service = await rig.serve(command, write_timeout=0.4, stop_timeout=0.1, retry=retry)
    await rig.call("misbehave")  # from now on it reads nothing
    pid = rig.bridge().process.pid
    began = time.monotonic()
    text = "x" * MEGABYTE
    assert await rig.call("echo", {"text": text}) == {"text": text}
    assert 0.4 < time.monotonic() - began < 8
    assert service.settlement.counts.retried == 1
    first, *others = bridge_lines(caplog, pid)
    assert "it does not read: " in first
    assert "after the write timeout of 0.4 s" in first
    assert ["ignored SIGTERM" in line for line in others] == [True] * bool(ignored)


async def test_a_write_timeout_is_a_timeout_that_names_itself(rig: Rig) -> None:
    await rig.serve(misbehave("does_not_read"), write_timeout=0.3, stop_timeout=0.1)
    await rig.call("misbehave")
    error = await failure(rig, "echo", {"text": "x" * MEGABYTE})
    assert type(error) is BridgeTimeout
    assert error.details["timeout"] == "write_timeout"
    assert "after the write timeout of 0.3 s" in error.message
    assert error.details["signal"] == "SIGTERM"


async def test_a_bridge_at_work_may_leave_its_next_request_unread(rig: Rig) -> None:
    program = SPEAKER + (
        "import time\n"
        "for asked in requests():\n"
        "    if asked['command'] == 'ping':\n"
        "        tell(asked['id'], success=True, result={'capabilities': {'concurrency': 2}})\n"
        "    elif asked['command'] == 'large':\n"
        "        tell(asked['id'], success=True, result=len(asked['args']['text']))\n"
        "    else:\n"
        "        time.sleep(1.2)\n"
        "        tell(asked['id'], success=True, result='at last')\n"
    )
    service = await rig.serve((*PYTHON, "-c", program), write_timeout=0.3)
    await until(lambda: service.pool.capacity == 2)
    busy = await rig.producer.submit("work", "sleep")
    await until(lambda: service.pool.slots[0].runs)
    large = await rig.producer.submit("work", "large", {"text": "x" * MEGABYTE})
    assert (await busy).result == "at last"
    assert (await large).result == MEGABYTE
    assert service.settlement.counts.failed == 0


@pytest.mark.parametrize("mode", ["half_header_then_stall", "half_frame_then_stall", "trickle", "length_counts_itself"])
async def test_half_a_frame_ends_by_the_frame_timeout(rig: Rig, mode: str) -> None:
    await rig.serve(misbehave(mode), frame_timeout=0.3, stop_timeout=0.1)
    pid = await rig.call("pid")
    began = time.monotonic()
    error = await failure(rig)
    assert type(error) is BridgeTimeout
    assert "half a frame, " in error.message
    assert "after the frame timeout of 0.3 s" in error.message
    assert error.details["timeout"] == "frame_timeout"
    assert error.details["pid"] == pid
    assert time.monotonic() - began < 5
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_of_several_requests_half_a_frame_may_answer_each_is_tried_again_alone(rig: Rig) -> None:
    program = SPEAKER + (
        "for asked in requests():\n"
        "    if asked['command'] == 'ping':\n"
        "        tell(asked['id'], success=True, result={'capabilities': {'concurrency': 2}})\n"
        "    elif asked['command'] == 'half':\n"
        "        os.write(1, b'\\0\\0')\n"
        "    elif 'attempt' in asked:\n"
        "        tell(asked['id'], success=True, result='innocent')\n"
    )
    retry = {"max_attempts": 3, "first_delay": 0.1}
    service = await rig.serve((*PYTHON, "-c", program), frame_timeout=0.3, stop_timeout=0.1, retry=retry)
    await until(lambda: service.pool.capacity == 2)
    innocent = await rig.producer.submit("work", "innocent")
    await until(lambda: service.pool.slots[0].runs)
    half = await rig.producer.submit("work", "half")
    assert (await innocent).result == "innocent"
    with pytest.raises(BridgeTimeout) as raised:
        await half
    assert raised.value.attempt == 2


async def test_the_whole_process_group_of_a_bridge_that_hangs_dies_with_it(rig: Rig) -> None:
    script = f"sleep 1000 & exec {' '.join(misbehave('hang'))}"
    await rig.serve(("/bin/sh", "-c", script), run_timeout=0.3)
    (sleeper,) = psutil.Process(await rig.call("pid")).children()
    assert type(await failure(rig)) is BridgeTimeout
    await until(lambda: not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE)


async def test_a_bridge_killed_from_outside_in_mid_request_is_a_crash(rig: Rig) -> None:
    service = await rig.serve(misbehave("hang"))
    handle = await rig.producer.submit("work", "misbehave")
    await until(lambda: states(service) == ["busy"])
    os.kill(rig.bridge().process.pid, signal.SIGKILL)
    with pytest.raises(BridgeCrashed, match="signal SIGKILL") as raised:
        await handle
    assert raised.value.details["signal"] == "SIGKILL"


async def test_a_bridge_killed_from_outside_while_idle_is_replaced_and_nobody_notices(rig: Rig) -> None:
    await rig.serve(misbehave("hang"))
    pid = await rig.call("pid")
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(pid))
    assert await rig.call("pid") != pid


async def test_a_grandchild_that_holds_stdout_open_does_not_hold_the_slot(rig: Rig) -> None:
    await rig.serve(misbehave("forks_setsid_sleep"))
    grandchild = await rig.call("misbehave")
    try:
        pid = await rig.call("pid")
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(pid))
        assert await rig.call("pid") != pid
    finally:
        os.kill(grandchild, signal.SIGKILL)


async def test_a_crash_is_told_with_all_that_is_known_of_it(rig: Rig) -> None:
    await rig.serve(misbehave("exit1_mid_request"))
    pid = await rig.call("pid")
    await rig.call("echo")
    details = dict((await failure(rig)).details)
    assert details.pop("uptime") > 0
    details.pop("memory_peak")  # seen, or not, before it died
    assert details == {
        "exit_code": 1,
        "signal": None,
        "oom": False,
        "pid": pid,
        "slot": 0,
        "served": 2,
        "stderr": ["last words"],
    }
    (letter,) = rig.broker.messages(DEAD)
    assert json.loads(letter.properties.headers["details"])["stderr"] == ["last words"]


async def test_a_crash_is_logged_in_one_line_with_all_that_is_known_of_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.serve(misbehave("exit1_mid_request"))
    pid = await rig.call("pid")
    rig.nodes[0].services[0].look()
    await failure(rig)
    (line,) = bridge_lines(caplog, pid)
    assert re.fullmatch(
        rf"work\[0\]: bridge {pid} ended by itself: exit code 1 after \d\.\d s, 1 served, memory peak \d+\.\d MB; "
        "its last words: last words",
        line,
    )


async def test_a_kill_for_want_of_memory_is_told_where_the_kernel_says_so(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    count = tmp_path / "memory.events"
    count.write_text("oom_kill 3\n")
    program = f"import os, signal; open({str(count)!r}, 'w').write('oom_kill 4\\n'); os.kill(os.getpid(), 9)"
    # It says what the kernel would, and dies as the kernel has it die.
    answering = SPEAKER + (
        "for asked in requests():\n"
        "    if asked['command'] == 'work':\n"
        f"        {program}\n"
        "    if asked['command'] == 'killed':\n"
        "        os.kill(os.getpid(), 9)\n"
        "    tell(asked['id'], success=True, result=1)\n"
    )
    node = rig.node((*PYTHON, "-c", answering))
    node._out_of_memory = OutOfMemoryKills(time.monotonic, [count])
    await rig.producer.start()
    await node.start()
    error = await failure(rig, "work")
    assert type(error) is BridgeCrashed
    assert error.details["oom"] is True
    assert f"signal SIGKILL, for want of memory: oom_kill in {count} went from 3 to 4" in error.message
    assert "for want of memory" in caplog.text
    error = await failure(rig, "killed")
    assert error.details["oom"] is False
    assert "memory" not in error.message


async def test_a_bridge_for_which_there_is_no_memory_to_start_in_says_so(rig: Rig, tmp_path: Path) -> None:
    count = tmp_path / "memory.events"
    count.write_text("oom_kill 0\n")
    node = rig.node(("/bin/sh", "-c", f"echo oom_kill 1 > {count}; kill -9 $$"))
    node._out_of_memory = OutOfMemoryKills(time.monotonic, [count])
    with pytest.raises(BridgeStartError, match=r"signal SIGKILL, for want of memory: oom_kill in \S+ went from 0 to 1"):
        await asyncio.wait_for(node.start(), PATIENCE)


async def test_a_crash_of_a_large_bridge_tells_its_memory_peak(rig: Rig) -> None:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + 50
    await rig.serve(misbehave("leak", size))
    await rig.call("misbehave")
    handle = await rig.producer.submit("work", "hang")  # a command it ignores
    await until(lambda: rig.nodes[0].services[0].pool.slots[0].runs)
    os.kill(rig.bridge().process.pid, signal.SIGKILL)
    with pytest.raises(BridgeCrashed) as raised:
        await handle
    assert raised.value.details["memory_peak"] > size * MEGABYTE


async def test_a_crash_is_tried_again_alone_and_then_kept(rig: Rig) -> None:
    retry = {"max_attempts": 2, "first_delay": 0.5}
    service = await rig.serve(misbehave("exit1_mid_request"), retry=retry)
    error = await failure(rig)
    assert isinstance(error, BridgeCrashed)
    assert error.attempt == 2
    counts = service.settlement.counts
    assert (counts.retried, counts.failed, counts.dead) == (1, 1, 1)
    assert rig.broker.messages(DEAD)[0].properties.headers["attempt"] == 2


async def test_a_retry_that_succeeds_says_which_try_it_was(rig: Rig) -> None:
    # The bridge is told its attempt: here it fails on the first and answers on the second.
    program = SPEAKER + (
        "for asked in requests():\n"
        "    if asked['command'] == 'work' and 'attempt' not in asked: os._exit(9)\n"
        "    tell(asked['id'], success=True, result=asked.get('attempt', 1))\n"
    )
    await rig.serve((*PYTHON, "-c", program), retry={"max_attempts": 3, "first_delay": 0.1})
    reply = await rig.producer.call("work", "work", timeout=PATIENCE)
    assert (reply.result, reply.attempt) == (2, 2)


async def test_a_crash_fails_each_request_on_a_pipelined_bridge_once(rig: Rig) -> None:
    service = await rig.serve(echo(4))
    await until(lambda: service.pool.capacity == 4)
    handles = [await rig.producer.submit("work", "sleep", {"seconds": 30}) for _ in range(4)]
    await until(lambda: len(service.pool.slots[0].runs) == 4)
    os.kill(rig.bridge().process.pid, signal.SIGKILL)
    outcomes = await asyncio.gather(*handles, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [BridgeCrashed] * 4
    assert service.settlement.counts.failed == 4
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_of_several_requests_on_a_bridge_none_is_called_too_large_until_it_is_known_which(rig: Rig) -> None:
    # `small` is answered when it is asked for alone: the first time it is not.
    program = SPEAKER + (
        "for asked in requests():\n"
        "    if asked['command'] == 'ping':\n"
        "        tell(asked['id'], success=True, result={'capabilities': {'concurrency': 2}})\n"
        "    elif asked['command'] == 'large':\n"
        "        tell(asked['id'], success=True, result='x' * 2_000_000)\n"
        "    elif 'attempt' in asked:\n"
        "        tell(asked['id'], success=True, result='small')\n"
    )
    retry = {"max_attempts": 2, "first_delay": 0.1}
    service = await rig.serve((*PYTHON, "-c", program), frame_limit=MEGABYTE, retry=retry)
    small = await rig.producer.submit("work", "small")
    await until(lambda: service.pool.slots[0].runs)
    large = await rig.producer.submit("work", "large")
    assert (await small).result == "small"
    with pytest.raises(TooLarge):
        await large
    assert service.settlement.counts.retried == 2


def pipelined(body: str) -> tuple[str, ...]:
    """A bridge that takes three requests at once; `body` has them in `asked`, by command."""
    program = SPEAKER + (
        "asked = {}\n"
        "for one in requests():\n"
        "    if one['command'] == 'ping':\n"
        "        tell(one['id'], success=True, result={'capabilities': {'concurrency': 3}})\n"
        "        continue\n"
        "    asked[one['command']] = one['id']\n"
        "    if 'attempt' in one:\n"
        "        tell(one['id'], success=True, result=one['attempt'])\n"
        "    elif len(asked) == 3:\n"
    )
    return (*PYTHON, "-c", program + textwrap.indent(textwrap.dedent(body), " " * 8))


async def three(rig: Rig, service: Dispatcher) -> list[Any]:
    """What became of three requests that were in flight on one bridge together: result, code or attempt."""
    await until(lambda: service.pool.capacity == 3)
    handles = [await rig.producer.submit("work", name) for name in "abc"]
    outcomes = await asyncio.gather(*handles, return_exceptions=True)
    return [outcome if isinstance(outcome, Exception) else outcome.result for outcome in outcomes]


async def test_replies_may_come_in_any_order(rig: Rig) -> None:
    body = "for name in 'cab':\n    tell(asked[name], success=True, result=name * 2)\n"
    service = await rig.serve(pipelined(body))
    assert await three(rig, service) == ["aa", "bb", "cc"]
    assert service.pool.slots[0].served == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("tell(asked['b'], success=True, result='bb')\ntell(asked['b'], success=True, result='again')", "which it was"),
        ("tell(asked['b'], success=True, result='bb')\ntell(12345, success=True, result='whose?')", "id 12345, which"),
        ("tell(asked['b'], success=True, result='bb')\ntell(0, success=True, result='handshake')", "id 0, which"),
        ("tell(asked['b'], success=True, result='bb')\ntell(12345, event='progress', data=1)", "id 12345, which"),
    ],
    ids=["twice", "unknown", "handshake", "progress of none"],
)
async def test_a_wrong_or_repeated_id_fails_each_request_left_once_and_the_answered_one_stays_answered(
    rig: Rig, body: str, said: str
) -> None:
    service = await rig.serve(pipelined(body))
    first, second, third = await three(rig, service)
    assert second == "bb"
    for error in (first, third):
        assert type(error) is ProtocolViolation
        assert said in error.message
        assert error.attempt == 1
    counts = service.settlement.counts
    assert (counts.succeeded, counts.failed, counts.dead) == (1, 2, 2)
    assert len(rig.broker.messages(DEAD)) == 2


async def test_a_crash_has_each_request_in_flight_tried_again_once_and_says_which_try_it_was(rig: Rig) -> None:
    body = "tell(asked['b'], success=True, result='bb')\nos._exit(0)"
    service = await rig.serve(pipelined(body), retry={"max_attempts": 2, "first_delay": 0.1})
    assert await three(rig, service) == [2, "bb", 2]
    counts = service.settlement.counts
    assert (counts.succeeded, counts.retried, counts.failed) == (3, 2, 0)


# Stderr.


@pytest.mark.parametrize(
    ("mode", "size", "said"),
    [
        ("stderr_flood", 1024 * MEGABYTE, r"x{8192} … \([\d,]+ bytes more\)"),
        ("stderr_flood_binary", 64 * MEGABYTE, r"(\\xff\\x1b\[31m\\r\\x00\\xe2\\x82)+.{0,30} … \([\d,]+ bytes more\)"),
        ("stderr_flood_lines", 64 * MEGABYTE, r"… \([\d,]+ lines left out\)"),
    ],
)
async def test_a_flood_of_stderr_costs_the_node_nothing_and_the_request_is_answered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, mode: str, size: int, said: str
) -> None:
    lines: deque[str] = deque(maxlen=3000)  # not caplog: that keeps all there ever was
    monkeypatch.setattr(bridges.bridge_logger, "info", lambda text, *values: lines.append(text % values))
    service = await rig.serve(misbehave(mode, size), bridges=2, run_timeout=600.0)
    await until(lambda: service.pool.ready == 2)
    before = psutil.Process().memory_info().rss
    flooding = await rig.producer.submit("work", "misbehave", timeout=600)
    worst = 0.0
    while not flooding.done():  # nobody else notices
        began = time.monotonic()
        await rig.call("echo")
        worst = max(worst, time.monotonic() - began)
        await asyncio.sleep(0.01)
    assert (await flooding).result == "as if nothing happened"
    assert psutil.Process().memory_info().rss - before < 20 * MEGABYTE
    assert worst < 2
    await rig.nodes[0].drain()
    assert all(line.isprintable() for line in lines)
    assert any(re.fullmatch(rf"work\[\d\] \S+: {said}", line) for line in lines), lines[-1][-200:]


async def test_stderr_is_logged_with_the_service_the_slot_and_the_request_and_made_safe(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quaybridge.bridge")
    await rig.serve(misbehave("stderr_binary"))
    handle = await rig.producer.submit("work", "misbehave")
    await handle
    await until(lambda: "forged log line" in caplog.text)
    lines = [record.getMessage() for record in caplog.records if record.name == "quaybridge.bridge"]
    assert lines[0].startswith(f"work[0] {handle.message_id}: ")
    assert all(line.replace("\t", "").isprintable() for line in lines)
    assert any(r"\x1b[31mred" in line for line in lines)


# Deadlines.


async def test_a_request_whose_deadline_passed_before_it_could_start_is_not_run(rig: Rig) -> None:
    service = await rig.serve(echo())
    busy = await rig.producer.submit("work", "sleep", {"seconds": 0.6})
    await until(lambda: states(service) == ["busy"])
    late = await rig.producer.submit("work", "echo", timeout=0.2)
    with pytest.raises(DeadlineExceeded):
        await late
    await busy
    assert service.pool.slots[0].served == 1


async def test_a_request_in_the_queue_past_its_deadline_is_answered_and_not_run(rig: Rig) -> None:
    service = await rig.serve(misbehave("hang"))
    body = encode_request(Request(id=1, command="misbehave", args={}))
    channel = await rig.broker.open("forger", on_closed=lambda _: None)
    deadline = int(time.time() * 1000) - 1
    properties = request_properties(message_id="late", command="misbehave", deadline=deadline)
    await channel.publish(
        Message(exchange=EXCHANGE, routing_key="work", body=body, properties=properties), timeout=PATIENCE
    )
    await until(lambda: service.settlement.counts.failed)
    assert "it was not run" in rig.broker.messages(DEAD)[0].properties.headers["error"]
    await channel.close()


async def test_a_request_that_runs_past_its_deadline_is_stopped_within_the_grace(rig: Rig) -> None:
    service = await rig.serve(misbehave("hang"), stop_timeout=0.2)
    pid = await rig.call("pid")
    began = time.monotonic()
    assert type(await failure(rig, timeout=0.3)) is DeadlineExceeded
    await until(lambda: not psutil.pid_exists(pid))
    assert time.monotonic() - began < 0.3 + 2.0
    await until(lambda: service.settlement.counts.failed)
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_a_bridge_that_can_cancel_is_asked_to_and_keeps_its_warm_state(rig: Rig) -> None:
    # In a language of its own, with cancel: it answers the cancelled request, and goes on.
    program = SPEAKER + (
        "for asked in requests():\n"
        "    if asked['command'] == 'ping':\n"
        "        tell(asked['id'], success=True, result={'capabilities': {'cancel': True}})\n"
        "    elif asked['command'] == 'cancel':\n"
        "        tell(asked['args']['id'], success=False, error='stopped as asked')\n"
        "    elif asked['command'] == 'pid':\n"
        "        tell(asked['id'], success=True, result=os.getpid())\n"
    )
    service = await rig.serve((*PYTHON, "-c", program))
    pid = await rig.call("pid")
    assert type(await failure(rig, "hang", timeout=0.2)) is DeadlineExceeded
    await until(lambda: service.settlement.counts.failed)
    assert await rig.call("pid") == pid


# Where it hangs.


@pytest.mark.parametrize(
    ("command", "launch", "said"),
    [
        ("hang_in_c", "directly", ["hangs.py .* in hang_in_c"]),
        ("hang_deep", "through a shell", ["threading.py .* in wait", "hangs.py .* in hang_in_python"]),
    ],
)
async def test_a_bridge_that_hangs_says_where_before_it_is_killed(
    rig: Rig, command: str, launch: str, said: list[str]
) -> None:
    program = with_sdk("hangs")
    if launch == "through a shell":  # which a signal meant for Python would end
        program = ("/bin/sh", "-c", f"{' '.join(program)}; exit $?")
    await rig.serve(program, run_timeout=0.3, stop_timeout=1.0)
    error = await failure(rig, command)
    assert type(error) is BridgeTimeout
    assert error.details["signal"] == "SIGTERM"
    lines = error.details["stderr"]
    main = max(n for n, line in enumerate(lines) if line.endswith("(most recent call first):"))
    assert any("_watch" in line for line in lines[:main])  # every thread, the one that hangs last
    calls = "\n".join(lines[main:]).replace('", line', "")
    assert all(re.search(pattern, calls) for pattern in said), lines
    assert await rig.call("echo", {"text": "a"}) == "a"


async def test_a_bridge_that_answers_its_cancel_lives_and_its_failure_says_where_it_was(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quaybridge.bridge")
    service = await rig.serve(with_sdk("hangs"), run_timeout=0.3, stop_timeout=2.0)
    pid = rig.bridge().process.pid
    error = await failure(rig, "wait_politely")
    assert type(error) is BridgeTimeout
    assert error.details["timeout"] == "run_timeout"
    assert "time.sleep(1000)" in error.details["traceback"]
    await asyncio.sleep(service.settings.stop_timeout / 2 + 0.1)  # by now a bridge that hangs was asked
    assert await rig.call("echo", {"text": "a"}) == "a"
    assert rig.bridge().process.pid == pid
    assert not [record for record in caplog.records if record.name == "quaybridge.bridge"]


async def test_a_node_says_what_every_slot_is_doing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quaybridge.node")
    service = await rig.serve(echo(2), bridges=2)
    await until(lambda: service.pool.ready == 2)
    handle = await rig.producer.submit("work", "sleep", {"seconds": 1})
    await until(lambda: service.pool.slots[0].runs)
    caplog.clear()
    rig.nodes[0].log_state()
    lines = [record.getMessage() for record in caplog.records]
    busy, idle = (f"work[{n}] {state}: bridge {rig.bridge(n).process.pid}" for n, state in enumerate(("busy", "idle")))
    assert re.fullmatch(
        re.escape(busy) + rf", up \d+\.\d s, 0 served, \d+\.\d MB; sleep {handle.message_id} for \d\.\d s", lines[0]
    )
    assert re.fullmatch(re.escape(idle) + r", up \d+\.\d s, 0 served, \d+\.\d MB", lines[1])
    await handle


# The frames, written down.


async def test_frames_are_written_down_for_whoever_asks_and_a_full_disk_costs_no_request(
    rig: Rig, tmp_path: Path
) -> None:
    debug = {"directory": str(tmp_path), "args": True}
    service = await rig.serve(foreign(), debug=debug)
    await rig.call("echo", {"text": "hi", "api_key": "hunter2"})
    pid = rig.bridge().process.pid
    lines = (tmp_path / "n1.work.frames.log").read_text().splitlines()
    assert [re.sub(r"^\S+|[\d,]+ bytes|id=\d+|\S+$", "", line).split() for line in lines[2:]] == [
        [">", "[0]", "echo"],
        ["<", "[0]", "success"],
    ]
    assert lines[0].split(" bytes ")[1].startswith("id=0 ping {")
    assert "hunter2" not in "".join(lines)
    assert '"text":"hi","api_key":"[redacted]"' in lines[2]
    assert service._bridges._frames is not None
    service._bridges._frames.close()
    service._bridges._frames._path = Path("/dev/full")
    for n in range(3):
        await rig.call("echo", {"n": n})
    assert rig.bridge().process.pid == pid


async def test_no_frames_are_written_down_unasked(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    service = await rig.serve(foreign())
    await rig.call("echo", {"text": "hi"})
    assert service._bridges._frames is None
    assert not list(tmp_path.iterdir())


async def test_what_comes_after_its_deadline_counts_for_nobody(rig: Rig) -> None:
    # It answers the one that was cancelled all the same, as if in time; the next one waits for that.
    program = SPEAKER + (
        "late = None\n"
        "for asked in requests():\n"
        "    if asked['command'] == 'ping':\n"
        "        tell(asked['id'], success=True, result={'capabilities': {'cancel': True}})\n"
        "    elif asked['command'] == 'cancel':\n"
        "        tell(asked['args']['id'], success=True, result='too late')\n"
        "    elif asked['command'] == 'next':\n"
        "        tell(asked['id'], success=True, result='next')\n"
    )
    service = await rig.serve((*PYTHON, "-c", program), run_timeout=0.3)
    late = await rig.producer.submit("work", "hang")
    following = await rig.producer.submit("work", "next")
    with pytest.raises(BridgeTimeout):
        await late
    assert (await following).result == "next"
    assert service.settlement.counts.succeeded == 1


# What comes in.


async def test_a_message_that_is_no_request_is_answered_and_kept_and_never_seen_by_a_bridge(rig: Rig) -> None:
    service = await rig.serve(misbehave("hang"))
    channel = await rig.broker.open("forger", on_closed=lambda _: None)
    for body in (b"", b"hello", b"{}", b'{"id":1,"command":"shutdown","args":{}}', b"\xff" * 100):
        properties = request_properties(message_id="m", command=None)
        message = Message(exchange=EXCHANGE, routing_key="work", body=body, properties=properties)
        await channel.publish(message, timeout=PATIENCE)
    await until(lambda: service.settlement.counts.dead == 5 and rig.broker.counts(QUEUE) == (0, 0))
    assert {m.properties.headers["code"] for m in rig.broker.messages(DEAD)} == {Code.BAD_REQUEST}
    assert service.pool.slots[0].served == 0
    with pytest.raises(BadRequest):
        await rig.call("shutdown")
    await channel.close()


# A bridge that does not read.


async def test_a_bridge_that_does_not_read_stalls_nobody_else(rig: Rig) -> None:
    service = await rig.serve(misbehave("does_not_read"), bridges=2)
    await until(lambda: service.pool.ready == 2)
    assert await rig.call("misbehave") == "as if nothing happened"  # from now on slot 0 reads nothing
    stuck = await rig.producer.submit("work", "echo", {"text": "x" * (10 * MEGABYTE)})
    await until(lambda: service.pool.slots[0].runs)
    for n in range(50):
        assert await rig.call("echo", {"n": n}) == {"n": n}
    assert not stuck.done()
    rig.bridge(0).process.send_signal(signal.SIGKILL)
    with pytest.raises(BridgeCrashed):
        await stuck


# A bridge that prints.


async def test_with_protocol_fd_a_program_may_print_what_and_how_it_likes(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quaybridge.bridge")
    service = await rig.serve(with_sdk("prints"), protocol_fd=True)
    pid = rig.bridge().process.pid
    for _ in range(3):
        seen = await rig.call("chat")
    assert seen == {"descriptors": ["0", "1", "2", "3"], "variables": [RUN], "stdin": ""}
    assert rig.bridge().process.pid == pid
    assert service.settlement.counts.failed == 0
    said = ["Loading model weights...", "a C library says hello", "from Python", "from C", "from a child"]
    await until(lambda: all(text in caplog.text for text in [*said, "from the descriptor"]))
    await rig.nodes[0].drain()  # at the end of its requests it ends as any other
    assert not bridge_lines(caplog, pid)


async def test_without_protocol_fd_the_same_program_does_not_start_and_the_error_says_why(rig: Rig) -> None:
    node = rig.node(with_sdk("prints"))
    with pytest.raises(BridgeStartError, match=r'"Loading model weights.*looks like text: did the program print'):
        await asyncio.wait_for(node.start(), PATIENCE)


async def test_a_bridge_of_another_language_can_have_its_frames_apart_too(rig: Rig) -> None:
    program = SPEAKER.replace("os.read(0", "os.read(source").replace("os.write(1", "os.write(sink") + (
        "source, sink = map(int, os.environ['QUAYBRIDGE_PROTOCOL_FDS'].split(','))\n"
        "print('chatter', flush=True)\n"
        "for asked in requests():\n"
        "    print('chatter', flush=True)\n"
        "    descriptors = os.listdir('/proc/self/fd')\n"
        "    tell(asked['id'], success=True, result=len(descriptors))\n"
    )
    service = await rig.serve((*PYTHON, "-c", program), protocol_fd=True, bridges=3)
    await until(lambda: service.pool.ready == 3)
    assert await rig.call("count") == 6  # 0 to 2, the pair, and the look itself


async def test_a_bridge_whose_descriptors_are_lost_on_the_way_says_so(rig: Rig) -> None:
    closing = "import os, sys; os.closerange(3, 100); os.execv(sys.argv[1], sys.argv[1:])"
    node = rig.node((*PYTHON, "-c", closing, *with_sdk("prints")), protocol_fd=True)
    with pytest.raises(BridgeStartError, match="does a program between the node and this one close those it inherits"):
        await asyncio.wait_for(node.start(), PATIENCE)


# What a bridge gets from its node.


async def test_a_bridge_sees_no_secret_and_no_descriptor_of_the_nodes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUAYBRIDGE_BROKER", "amqp://user:secret@host/")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    inherited = os.dup(0)
    os.set_inheritable(inherited, True)
    try:
        service = await rig.serve(misbehave("hang"), bridges=3, environment={"GPU": "gpu-{slot}"})
        await until(lambda: service.pool.ready == 3)
        seen = await rig.call("look")
    finally:
        os.close(inherited)
    assert "secret" not in json.dumps(seen["environ"])
    assert seen["environ"]["QUAYBRIDGE_BRIDGE"] == "1"
    assert seen["environ"]["GPU"] == "gpu-0"
    assert set(seen["descriptors"]) == {"0", "1", "2", "3"}  # the last is the look itself


async def test_a_bridge_runs_where_it_is_told_to(rig: Rig, tmp_path: Any) -> None:
    await rig.serve(misbehave("hang"), directory=str(tmp_path))
    assert os.readlink(f"/proc/{rig.bridge().process.pid}/cwd") == str(tmp_path)


# Bridges that do not start.


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        (("/no/such/program",), {}, "/no/such/program: No such file"),
        (foreign(), {"directory": "/no/such/place"}, "/no/such/place: No such file"),
        (foreign(), {"environment": {"A=B": "x"}}, "environment variable name"),
        (("/etc/passwd",), {}, "Permission denied"),
        (("/bin/false",), {}, "exit code 1"),
        (misbehave("exit_at_start"), {}, "cannot find the model file"),
        (misbehave("exit_zero_at_start"), {}, "exit code 0"),
        (misbehave("text_before_handshake"), {}, "Loading model weights"),
        (misbehave("never_ready"), {"start_timeout": 0.3}, "within the start timeout of 0.3 s"),
        (misbehave("refuses_handshake"), {}, "no GPU here"),
        (misbehave("handshake_not_json"), {}, "bad_json"),
        (misbehave("handshake_nonsense"), {}, "concurrency"),
        (misbehave("closes_stdout_at_start"), {}, "it closed its stdout"),
        (misbehave("half_a_handshake"), {"frame_timeout": 0.3}, "after the frame timeout of 0.3 s"),
        (("/bin/cat",), {}, "(`quaybridge conformance -- COMMAND…` checks a bridge)"),
    ],
)
@pytest.mark.parametrize("bridges", [1, 3])
async def test_a_node_whose_bridges_cannot_start_says_why_and_leaves_nothing(
    rig: Rig, command: tuple[str, ...], options: dict[str, Any], said: str, bridges: int
) -> None:
    node = rig.node(command, bridges=bridges, **options)
    with pytest.raises(BridgeStartError) as raised:
        await asyncio.wait_for(node.start(), PATIENCE)
    assert said in str(raised.value)
    assert str(raised.value).startswith("service work: ")
    assert not started_here()
    assert not node.serving


async def test_one_slot_that_fails_again_and_again_does_not_speak_for_those_that_are_slow(rig: Rig) -> None:
    script = f'[ "$SLOT" = 0 ] && exit 7; sleep 0.5; exec {" ".join(foreign())}'
    service = await rig.serve(
        ("/bin/sh", "-c", script), bridges=2, environment={"SLOT": "{slot}"}, max_restart_delay=0.02
    )
    assert states(service)[1] == "idle"
    assert service.pool.slots[0].faults > 2


class Mended:
    """A bridge that starts only while a file is there."""

    def __init__(self, file: Any) -> None:
        self.file = file
        program = " ".join(misbehave("exit1_mid_request"))
        self.command = ("/bin/sh", "-c", f"[ -e {file} ] && exec {program}; echo no model >&2; exit 1")

    def break_it(self) -> None:
        self.file.unlink()

    def mend(self) -> None:
        self.file.touch()


@pytest.mark.parametrize("start", ["eager", "lazy"])
async def test_a_node_whose_bridges_no_longer_start_takes_nothing_and_gives_back_what_it_holds(
    rig: Rig, tmp_path: Any, start: str
) -> None:
    mended = Mended(tmp_path / "model")
    mended.mend()
    service = await rig.serve(mended.command, start=start)
    await rig.call("echo")
    mended.break_it()
    assert isinstance(await failure(rig), BridgeCrashed)
    waiting = await rig.producer.submit("work", "echo", {"a": 1})
    # Whether it was taken before the node knew, or not: it is with the broker in the end, at most once given back.
    await until(lambda: service.pool.failing and rig.broker.counts(QUEUE) == (1, 0))
    assert not rig.nodes[0].serving
    assert handed_back(rig) <= 1
    faults = service.pool.slots[0].faults
    await until(lambda: service.pool.slots[0].faults > faults + 2)  # it goes on trying, in vain
    assert rig.broker.counts(QUEUE) == (1, 0)
    mended.mend()
    assert (await waiting).result == {"a": 1}
    assert rig.nodes[0].serving


async def test_another_node_serves_what_one_gave_back(rig: Rig, tmp_path: Any) -> None:
    mended = Mended(tmp_path / "model")
    mended.mend()
    await rig.serve(mended.command)
    mended.break_it()
    assert isinstance(await failure(rig), BridgeCrashed)
    waiting = await rig.producer.submit("work", "echo", {"a": 1})
    await rig.serve(misbehave("hang"))
    reply = await asyncio.wait_for(waiting.result(), PATIENCE)
    assert reply.node == "n2"


async def test_a_node_without_free_descriptors_says_so_and_serves_again_when_there_are_some(rig: Rig) -> None:
    service = await rig.serve(foreign(), max_restart_delay=0.2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the first that is free
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        os.kill(rig.bridge().process.pid, signal.SIGKILL)
        await until(lambda: service.start_trouble)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert service.start_trouble is not None
    assert "Too many open files" in service.start_trouble
    assert (await rig.call("echo", {"a": 1}))["echoed"] == {"a": 1}


# Connections.


async def test_a_lost_connection_brings_what_was_under_way_again_and_new_work_is_served(rig: Rig) -> None:
    service = await rig.serve(echo())
    await rig.producer.publish("work", "sleep", {"seconds": 0.3})
    await until(lambda: states(service) == ["busy"])
    rig.broker.close_all("maintenance")
    counts = service.settlement.counts
    await until(lambda: rig.nodes[0].serving and counts.redelivered and rig.broker.counts(QUEUE) == (0, 0))
    assert counts.redelivered == counts.joined + counts.repeated == 1
    assert service.pool.slots[0].served == 1
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_what_waited_when_the_connection_was_lost_does_not_run_twice(rig: Rig) -> None:
    service = await rig.serve(echo(), bridges=1)
    hold_four(service)
    await rig.producer.publish("work", "sleep", {"seconds": 1.5})
    await until(lambda: states(service) == ["busy"])
    for _ in range(2):
        await rig.producer.publish("work", "echo", {})
    await until(lambda: len(service.pool.waiting) == 2)
    rig.broker.close_all("maintenance")
    await until(lambda: rig.broker.counts(QUEUE) == (0, 0) and not any(service.pool.tickets()))
    assert service.pool.slots[0].served == 3


async def test_a_subscription_the_broker_ends_is_made_again(rig: Rig) -> None:
    await rig.serve(misbehave("hang"))
    rig.broker.cancel_consumers(QUEUE)
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_a_queue_that_was_deleted_is_declared_again(rig: Rig) -> None:
    await rig.serve(misbehave("hang"))
    rig.broker.delete_queue(QUEUE)
    await until(lambda: not rig.nodes[0].serving)
    await until(lambda: rig.nodes[0].serving)
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_losing_the_connection_while_the_intake_changes_leaves_no_consumer_behind(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    consume = MemoryChannel.consume

    async def slowly(self: MemoryChannel, *arguments: Any, **options: Any) -> Consumer:
        await asyncio.sleep(0.02)  # as long as a broker elsewhere takes to answer
        return await consume(self, *arguments, **options)

    monkeypatch.setattr(MemoryChannel, "consume", slowly)
    service = await rig.serve(misbehave("hang"), bridges=2)
    await rig.call("echo")
    sizes = iter(range(1, 10_000))
    monkeypatch.setattr(service.lookahead, "wanted", lambda capacity: next(sizes) // 30)  # again and again another
    rig.broker.close_all("maintenance")
    await until(lambda: not rig.nodes[0].serving)
    async with asyncio.timeout(PATIENCE):
        while not rig.nodes[0].serving:
            rig.nodes[0]._changed.set()
            await asyncio.sleep(0.001)
    monkeypatch.setattr(service.lookahead, "wanted", lambda capacity: 5)
    await rig.call("echo")
    rig.nodes[0]._changed.set()
    await until(lambda: 5 in [s.prefetch for s in rig.broker._vhost.queues[QUEUE].subscriptions])
    assert sorted(s.prefetch for s in rig.broker._vhost.queues[QUEUE].subscriptions) == [2, 5]
    assert await rig.call("echo", {"a": 1}) == {"a": 1}


async def test_a_node_with_more_places_than_a_consumer_may_be_given_takes_as_many_as_it_may(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a reconnect: what AMQP has no number for would be the end of its connection, for good."""
    service = await rig.serve(echo(1024))
    monkeypatch.setattr(service.lookahead, "wanted", lambda capacity: capacity * MOST_PER_SLOT)  # runs are short
    for _ in range(2):
        await rig.call("echo")
        rig.nodes[0]._changed.set()
        await until(
            lambda: sorted(s.prefetch for s in rig.broker._vhost.queues[QUEUE].subscriptions) == [1024, MAX_PREFETCH]
        )
        rig.broker.close_all("maintenance")
        await until(lambda: not rig.nodes[0].serving)
        await until(lambda: rig.nodes[0].serving)


# The end.


async def test_draining_finishes_what_runs_and_gives_back_what_waits(rig: Rig) -> None:
    service = await rig.serve(echo())
    hold_four(service)
    running = await rig.producer.submit("work", "sleep", {"seconds": 1.5})
    await until(lambda: states(service) == ["busy"])
    for _ in range(2):
        await rig.producer.publish("work", "echo", {})
    await until(lambda: len(service.pool.waiting) == 2)
    await rig.nodes[0].drain()
    assert (await running).result == 1.5
    assert rig.broker.counts(QUEUE) == (2, 0)
    assert service.pool.empty
    assert handed_back(rig) == 2
    await rig.nodes[0].drain()  # twice is as good as once
    await rig.nodes[0].stop()


async def test_draining_gives_back_what_does_not_finish_in_time(rig: Rig) -> None:
    service = await rig.serve(misbehave("hang_ignoring_sigterm"), of_node={"drain_timeout": 0.2})
    await rig.producer.publish("work", "misbehave")
    await until(lambda: states(service) == ["busy"])
    began = time.monotonic()
    await rig.nodes[0].drain()
    assert time.monotonic() - began < 2
    assert rig.broker.counts(QUEUE) == (1, 0)
    assert not rig.broker.messages(DEAD)


async def test_draining_lets_idle_bridges_end_by_themselves(rig: Rig, tmp_path: Any) -> None:
    # The end of its input is its sign to go: what it does then it can do.
    script = f"{' '.join(foreign())}; echo went by itself > {tmp_path}/said"
    await rig.serve(("/bin/sh", "-c", script), stop_timeout=5.0)
    await rig.nodes[0].drain()
    assert (tmp_path / "said").read_text() == "went by itself\n"


async def test_stopping_kills_at_once_and_gives_back_what_ran(rig: Rig) -> None:
    service = await rig.serve(misbehave("hang_ignoring_sigterm"), stop_timeout=60.0)
    await rig.producer.publish("work", "misbehave")
    await until(lambda: states(service) == ["busy"])
    began = time.monotonic()
    await rig.nodes[0].stop()
    assert time.monotonic() - began < 2
    assert rig.broker.counts(QUEUE) == (1, 0)
    assert service.pool.empty


async def test_a_drain_that_is_cut_short_anywhere_is_completed_by_stop(rig: Rig) -> None:
    service = await rig.serve(misbehave("hang_ignoring_sigterm"), bridges=2, stop_timeout=60.0)
    await rig.producer.publish("work", "misbehave")
    await until(lambda: "busy" in states(service))
    draining = asyncio.ensure_future(rig.nodes[0].drain())
    await until(lambda: any(slot.phase is Phase.STOPPING for slot in service.pool.slots))
    draining.cancel()
    await asyncio.wait([draining])
    assert not service.pool.empty
    await asyncio.gather(rig.nodes[0].stop(), rig.nodes[0].stop())
    assert service.pool.empty
    assert not started_here()


async def running(rig: Rig, command: tuple[str, ...], **options: Any) -> tuple[Node, asyncio.Task[None]]:
    node = rig.node(command, **options)
    await rig.producer.start()
    task = asyncio.create_task(node.run())
    return node, task


async def test_run_serves_until_it_is_asked_to_stop_and_drains_then(rig: Rig) -> None:
    node, task = await running(rig, echo())
    await until(lambda: node.serving)
    handle = await rig.producer.submit("work", "sleep", {"seconds": 0.3})
    await until(lambda: states(node.services[0]) == ["busy"])
    node.request_stop()
    await asyncio.wait_for(task, PATIENCE)
    assert (await handle).result == 0.3


async def test_a_second_request_to_stop_is_fast_even_while_bridges_are_on_their_way_out(rig: Rig) -> None:
    # Idle, deaf to the end of its input and to SIGTERM: a drain would wait for it for two minutes.
    script = f"trap '' TERM; {' '.join(foreign())}; while :; do sleep 1; done"
    node, task = await running(rig, ("/bin/sh", "-c", script), stop_timeout=60.0)
    await until(lambda: node.serving)
    node.request_stop()
    await until(lambda: states(node.services[0]) == ["stopping"])
    began = time.monotonic()
    node.request_stop()
    await asyncio.wait_for(task, PATIENCE)
    assert time.monotonic() - began < 2
    assert not started_here()


async def test_run_can_be_stopped_while_it_starts(rig: Rig) -> None:
    node, task = await running(rig, misbehave("never_ready"))
    await until(children)
    node.request_stop()
    await asyncio.wait_for(task, PATIENCE)
    assert not started_here()


async def test_run_cancelled_leaves_nothing(rig: Rig) -> None:
    node, task = await running(rig, misbehave("hang"))
    await until(lambda: node.serving)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not started_here()


async def test_run_raises_what_start_does(rig: Rig) -> None:
    _, task = await running(rig, ("/bin/false",))
    with pytest.raises(BridgeStartError):
        await asyncio.wait_for(task, PATIENCE)


async def test_a_process_that_ignores_its_childrens_ends_is_told_so(rig: Rig) -> None:
    """A node there would be told again and again that a bridge has ended, and never how."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(BridgeStartError, match="ignores SIGCHLD"):
            await rig.node(misbehave("hang")).start()
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_a_node_shows_what_it_does(rig: Rig) -> None:
    await rig.serve(misbehave("hang"), bridges=2)
    await until(lambda: rig.nodes[0].services[0].pool.ready == 2)
    assert repr(rig.nodes[0]) == "<Node n1: <Pool 2 idle, 0 waiting>>"
    assert repr(rig.nodes[0].services[0]) == "<Dispatcher work: <Pool 2 idle, 0 waiting>>"
