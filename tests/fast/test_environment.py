"""What of the node's environment gets into a bridge."""

from __future__ import annotations

import pytest

from worker_node.environment import ENDS_WITH, MARK, RUN, bridge_environment

NODE = {
    "PATH": "/usr/bin",
    "HOME": "/home/me",
    "LANG": "C.UTF-8",
    "LC_ALL": "C",
    "TZ": "UTC",
    "TMPDIR": "/tmp",
    "PYTHONPATH": "/src",
    "PYTHON_GIL": "0",
    "VIRTUAL_ENV": "/venv",
    "USER": "me",
    "QUAYBRIDGE_BROKER": "amqp://user:secret@host/",
    "RABBITMQ_URL": "amqp://user:secret@host/",
    "DATABASE_PASSWORD": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "GITHUB_TOKEN": "secret",
    "LD_PRELOAD": "/evil.so",
    "path": "/not/that",
    # Named so that a beginning alone would let them in.
    "PYTHON_INDEX_TOKEN": "secret",
    "PYTHONPASSWORD": "secret",
    "LC_API_KEY": "secret",
    "PYTHON_BROKER": "amqp://secret.example",
    "PYTHON_MIRROR": "https://user:secret@host/",
}


def test_only_what_is_allowed_gets_in() -> None:
    assert set(bridge_environment(NODE, {}, 0, "x/1")) == {
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "TZ",
        "TMPDIR",
        "PYTHONPATH",
        "PYTHON_GIL",
        MARK,
        RUN,
    }


def test_a_bridge_that_ends_with_its_node_is_told_which_process_that_is() -> None:
    assert bridge_environment({}, {}, 0, "x/1", ends_with=17)[ENDS_WITH] == "17"
    assert ENDS_WITH not in bridge_environment({}, {}, 0, "x/1")


def test_no_secret_gets_in() -> None:
    assert "secret" not in str(bridge_environment(NODE, {}, 0, "x/1"))


def test_what_the_service_names_gets_in_and_wins() -> None:
    environment = bridge_environment(NODE, {"PATH": "/opt/bin", "API_TOKEN": "meant to be"}, 0, "x/1")
    assert environment["PATH"] == "/opt/bin"
    assert environment["API_TOKEN"] == "meant to be"


@pytest.mark.parametrize("slot", [0, 13])
def test_the_slots_number_is_put_in(slot: int) -> None:
    named = {"CUDA_VISIBLE_DEVICES": "{slot}", "LABEL": "gpu-{slot}/{slot}", "BRACES": "{other}"}
    environment = bridge_environment({}, named, slot, "x/1")
    assert environment["CUDA_VISIBLE_DEVICES"] == str(slot)
    assert environment["LABEL"] == f"gpu-{slot}/{slot}"
    assert environment["BRACES"] == "{other}"


def test_a_bridge_can_tell_that_a_node_started_it_whatever_the_settings_say() -> None:
    assert bridge_environment({}, {MARK: "0"}, 0, "x/1")[MARK] == "1"


def test_a_bridge_can_be_found_whatever_the_settings_say() -> None:
    assert bridge_environment({RUN: "another"}, {RUN: "none"}, 0, "x/1")[RUN] == "x/1"


def test_a_path_with_odd_characters_is_no_url() -> None:
    path = "/usr//bin:/home/me@host/bin:C:/x"
    assert bridge_environment({"PATH": path}, {}, 0, "x/1")["PATH"] == path


def test_the_nodes_own_environment_is_left_alone() -> None:
    before = dict(NODE)
    bridge_environment(NODE, {"PATH": "/opt/bin"}, 0, "x/1")
    assert before == NODE
