"""What the documents say about settings is what the settings say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from worker_node.settings import NodeSettings, ServiceSettings

WORKER = (Path(__file__).parents[2] / "docs" / "worker.md").read_text()


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The settings of a model, those of its tables too."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def documented(heading: str) -> dict[str, str]:
    """The keys in the table under a heading, with their defaults."""
    section = WORKER.split(f"### `{heading}`\n")[1].split("\n#")[0]
    return dict(re.findall(r"^\| `([a-z_.]+)` \| ([^|]*) \|", section, re.MULTILINE))


def test_every_setting_is_documented_and_no_other() -> None:
    assert list(documented("[node]")) == [key for key in keys(NodeSettings) if key != "services"]
    assert sorted(documented("[services.NAME]")) == sorted(key for key in keys(ServiceSettings) if key != "name")


def test_the_documented_defaults_are_the_defaults() -> None:
    settings = ServiceSettings(name="echo", command=("program",))
    for key, said in documented("[services.NAME]").items():
        value: object = settings
        for name in key.split("."):
            value = getattr(value, name)
        match said:
            case "required" | "one for each CPU" | "the node's own":
                continue
            case "`first_delay`":
                assert value is None, key
            case "off" | "none":
                assert not value, key
            case _ if said.endswith(" MiB"):
                assert value == int(said.split()[0]) * 2**20, key
            case "true" | "false":
                assert value is (said == "true"), key
            case _:
                assert value == (said.strip('`"') if isinstance(value, str) else float(said)), key


def test_the_tests_that_prove_the_guarantees_exist() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`", (root / "docs" / "guarantees.md").read_text())
    assert len(named) > 30
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (root / file).read_text(), re.MULTILINE), f"{file}::{test}"
