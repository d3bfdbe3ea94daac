"""What the documents say about settings is what the settings say, and what they have a reader type can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import DOCS, blocks, text
from pydantic import BaseModel

from quaybridge.command_line import application
from quaybridge.settings import read_configuration
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


@pytest.mark.parametrize(
    ("heading", "settings"),
    [
        ("[services.NAME]", ServiceSettings(name="echo", command=("program",))),
        ("[node]", NodeSettings(services=(ServiceSettings(name="echo", command=("program",)),))),
    ],
)
def test_the_documented_defaults_are_the_defaults(heading: str, settings: BaseModel) -> None:
    for key, said in documented(heading).items():
        value: object = settings
        for name in key.split("."):
            value = getattr(value, name)
        match said:
            case "required" | "one for each CPU" | "the node's own" | "host name and process id":
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


PAGES = ["../README.md", *sorted(path.name for path in DOCS.glob("*.md"))]
TABLES = [(page, table) for page in PAGES for table in blocks(page, "toml") if "[services." in table]


@pytest.mark.parametrize(("page", "table"), TABLES, ids=[page for page, _ in TABLES])
def test_every_configuration_in_the_documents_can_be_used(page: str, table: str, tmp_path: Path) -> None:
    file = tmp_path / "quaybridge.toml"
    file.write_text(table, encoding="utf-8")
    configuration = read_configuration(file, environ={})
    assert configuration.node().services
    assert configuration.broker()


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Each line of a document that begins with `quaybridge`, without what is the shell's: comments, pipes, files."""
    for page in PAGES:
        for line in re.findall(r"^(?:    |\$ )quaybridge ([a-z].+)$", text(page), re.MULTILINE):
            yield page, shlex.split(re.split(r" [<>|]+ |  +#", line)[0])


LINES = list(command_lines())


@pytest.mark.parametrize(("page", "arguments"), LINES, ids=[f"{page} {' '.join(words)}" for page, words in LINES])
def test_every_command_in_the_documents_can_be_given(page: str, arguments: list[str]) -> None:
    name, *rest = arguments
    command: Any = typer.main.get_command(application()).commands[name]
    while rest and rest[0] in getattr(command, "commands", ()):
        command = command.commands[rest.pop(0)]
    command.make_context(name, rest)  # or it ends with its usage


def test_there_are_some() -> None:
    assert len(TABLES) >= 4
    assert len(LINES) >= 15
