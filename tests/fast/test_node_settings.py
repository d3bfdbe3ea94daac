"""What a node can be told, and what it refuses to hear."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from pydantic import ValidationError

from bridge_protocol.errors import Code
from bridge_protocol.frames import LIMIT_CEILING
from bridge_protocol.topology import CONSUMER_TIMEOUT, MAX_RUN_TIMEOUT, RESERVED_NAMES
from worker_node.settings import (
    AnsweredSettings,
    BridgeCount,
    LimitSettings,
    NodeSettings,
    RetrySettings,
    ServiceSettings,
    Settings,
    default_node_name,
)


def service(**changes: Any) -> ServiceSettings:
    return ServiceSettings.model_validate({"name": "echo", "command": ["program"], **changes})


def node(**changes: Any) -> NodeSettings:
    return NodeSettings.model_validate({"services": [service()], **changes})


def test_the_defaults_are_those_that_are_documented() -> None:
    made = service()
    processors = len(os.sched_getaffinity(0))
    assert made.bridges == BridgeCount(processors, processors)
    assert made.start == "eager"
    assert made.run_timeout == 300
    assert made.frame_limit == 16 * 1024 * 1024
    assert made.retry == RetrySettings(max_attempts=3, first_delay=1, factor=5, max_delay=600)
    assert made.retry.first_delays == {
        Code.BRIDGE_CRASHED: 1,
        Code.PROTOCOL_VIOLATION: 1,
        Code.BRIDGE_TIMEOUT: 0,
        Code.APPLICATION_ERROR: 1,
    }
    assert made.answered == AnsweredSettings(count=1024, bytes=16 * 1024 * 1024, age=300)
    assert made.limits == LimitSettings(memory=None, open_files=None, processes=None, cpu_time=None, nice=0)
    assert node().name == default_node_name()
    assert str(os.getpid()) in node().name


@pytest.mark.parametrize("model", Settings.__subclasses__())
def test_every_setting_is_described(model: type[Settings]) -> None:
    undocumented = {name: field.annotation for name, field in model.model_fields.items() if not field.description}
    undocumented.pop("services", None)
    assert set(undocumented.values()) <= set(Settings.__subclasses__())  # tables, described in their own place


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (4, BridgeCount(4, 4)),
        ("4", BridgeCount(4, 4)),
        ("1-8", BridgeCount(1, 8)),
        ({"min": 1, "max": 8}, BridgeCount(1, 8)),
        (BridgeCount(2, 3), BridgeCount(2, 3)),
    ],
)
def test_how_many_bridges_can_be_written_in_these_ways(written: object, count: BridgeCount) -> None:
    assert service(bridges=written).bridges == count


def test_each_failure_may_have_a_first_delay_of_its_own() -> None:
    delays = service(retry={"first_delay": 2, "after": {"bridge_timeout": 30, "bridge_crashed": 0}}).retry.first_delays
    assert delays == {
        Code.BRIDGE_CRASHED: 0,
        Code.PROTOCOL_VIOLATION: 2,
        Code.BRIDGE_TIMEOUT: 30,
        Code.APPLICATION_ERROR: 2,
    }


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        service().bridges = 3


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"brigdes": 4}, "brigdes"),
        ({"name": ""}, "name"),
        ({"name": "Echo"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a.b"}, "name"),
        ({"name": "echo\n"}, "name"),
        *[({"name": name}, "name") for name in sorted(RESERVED_NAMES)],
        ({"command": []}, "command"),
        ({"command": [""]}, "command"),
        ({"command": "python -m examples.echo"}, "command"),
        ({"command": ["program", "a\0b"]}, "command"),
        ({"bridges": 0}, "bridges"),
        ({"bridges": -1}, "bridges"),
        ({"bridges": 1025}, "bridges"),
        ({"bridges": 1.5}, "bridges"),
        ({"bridges": True}, "bridges"),
        ({"bridges": "8-1"}, "bridges"),
        ({"bridges": {"min": 1}}, "bridges"),
        ({"bridges": {"min": 1, "max": 2, "least": 3}}, "bridges"),
        ({"recycle": {"requests": 0}}, "recycle.requests"),
        ({"recycle": {"memory": 1000}}, "recycle.memory"),
        ({"recycle": {"memory": 2**30, "memory_hard": 2**30}}, "recycle"),
        ({"breaker": {"failures": 0}}, "breaker.failures"),
        ({"start": "later"}, "start"),
        ({"run_timeout": 0}, "run_timeout"),
        ({"run_timeout": -1}, "run_timeout"),
        ({"run_timeout": float("nan")}, "run_timeout"),
        ({"run_timeout": float("inf")}, "run_timeout"),
        ({"run_timeout": MAX_RUN_TIMEOUT + 1}, "run_timeout"),
        ({"start_timeout": 0}, "start_timeout"),
        ({"stop_timeout": float("nan")}, "stop_timeout"),
        ({"restart_delay": -0.1}, "restart_delay"),
        ({"max_restart_delay": 1e9}, "max_restart_delay"),
        ({"frame_limit": 0}, "frame_limit"),
        ({"frame_limit": LIMIT_CEILING + 1}, "frame_limit"),
        ({"write_timeout": 0}, "write_timeout"),
        ({"frame_timeout": float("inf")}, "frame_timeout"),
        ({"protocol_fd": "perhaps"}, "protocol_fd"),
        ({"debug": {"directory": ""}}, "debug.directory"),
        ({"debug": {"max_bytes": 1}}, "debug.max_bytes"),
        ({"debug": {"files": 0}}, "debug.files"),
        ({"debug": {"arg_bytes": 0}}, "debug.arg_bytes"),
        ({"debug": {"size": 1}}, "debug.size"),
        ({"environment": {"A": 1}}, "environment"),
        ({"environment": ["A=1"]}, "environment"),
        ({"retry": {"max_attempts": 0}}, "retry.max_attempts"),
        ({"retry": {"max_attempts": 101}}, "retry.max_attempts"),
        ({"retry": {"factor": 0.5}}, "retry.factor"),
        ({"retry": {"first_delay": 0}}, "retry.first_delay"),
        ({"retry": {"attempts": 3}}, "retry.attempts"),
        ({"retry": {"after": {"bridge_timeout": -1}}}, "retry.after.bridge_timeout"),
        ({"retry": {"after": {"cancelled": 1}}}, "retry.after.cancelled"),
        ({"answered": {"count": -1}}, "answered.count"),
        ({"answered": {"bytes": -1}}, "answered.bytes"),
        ({"answered": {"age": 0}}, "answered.age"),
        ({"limits": {"memory": 1024}}, "limits.memory"),
        ({"limits": {"memory": "512Q"}}, "limits.memory"),
        ({"limits": {"open_files": 3}}, "limits.open_files"),
        ({"limits": {"processes": 0}}, "limits.processes"),
        ({"limits": {"cpu_time": 0}}, "limits.cpu_time"),
        ({"limits": {"cpu_time": 1.5}}, "limits.cpu_time"),
        ({"limits": {"nice": -1}}, "limits.nice"),
        ({"limits": {"nice": 20}}, "limits.nice"),
        ({"limits": {"core": 1}}, "limits.core"),
    ],
)
def test_a_service_that_makes_no_sense_is_refused_by_the_name_of_the_setting(
    changes: dict[str, Any], where: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        service(**changes)
    assert {".".join(map(str, error["loc"])).split(".environment")[0] for error in refused.value.errors()} & {
        where,
        f"{where}.A",
        f"{where}.0",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"services": []},
        {"name": ""},
        {"name": "with space"},
        {"name": "x" * 129},
        {"name": "new\nline"},
        {"name": "end\n"},
        {"drain_timeout": 0},
        {"publish_timeout": -1},
        {"unknown": 1},
    ],
)
def test_a_node_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        node(**changes)


def test_a_service_given_twice_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=re.escape("service 'echo' is given twice")):
        node(services=[service(), service(command=["other"])])
    assert len(node(services=[service(), service(name="other")]).services) == 2


def test_a_request_can_never_run_into_the_brokers_own_timeout() -> None:
    assert MAX_RUN_TIMEOUT * 2 <= CONSUMER_TIMEOUT
