"""Who may import whom, over the real source: each rule with its reason, each breach with its file and line."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("bridge_protocol", "bridge_sdk", "broker", "producer", "quaybridge", "worker_node")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """No module within `where` (and not within `except_in`) imports `never` or anything in it.

    `within` is the part of the source it is about: a package or module, by its dotted name, or "" for all.
    `lazily`: an import inside a function is allowed, because it costs nothing at the start.
    """

    within: str
    never: frozenset[str]
    why: str
    except_in: str | None = None
    lazily: bool = False


def rule(within: str, never: str, why: str, *, except_in: str | None = None, lazily: bool = False) -> Rule:
    return Rule(within=within, never=frozenset(never.split()), why=why, except_in=except_in, lazily=lazily)


RULES = (
    rule("", "quaybridge", "it is the face: everything is below it", except_in="quaybridge"),
    rule("", "pika", "AMQP has one home, so that the embedded broker can stand in for it", except_in="broker"),
    rule("", "orjson", "one encoder and one decoder for everyone", except_in="bridge_protocol.codec"),
    rule("", "tests benchmarks examples", "what ships must not need what shows it", except_in="quaybridge"),
    rule(
        "bridge_protocol",
        "bridge_sdk broker producer worker_node",
        "it is what all the others share",
    ),
    rule(
        "bridge_protocol",
        "asyncio os random secrets select selectors signal socket ssl subprocess sys threading time",
        "it is pure, so it is tested in milliseconds: no threads, clocks, sockets or system",
    ),
    rule("broker", "bridge_sdk producer worker_node", "it carries messages, whoever sends and takes them"),
    rule("producer", "bridge_sdk worker_node", "a producer meets nodes through the broker alone"),
    rule("worker_node", "producer", "a node meets producers through the broker alone"),
    rule("worker_node", "bridge_sdk", "so that the protocol is proved complete: a bridge in any language will do"),
    rule(
        "worker_node.core",
        "asyncio broker multiprocessing os pathlib psutil random secrets select selectors signal socket ssl subprocess"
        " sys threading time",
        "it decides and others act: no IO, clock or random source; `now` and jitter are arguments",
    ),
    rule("bridge_sdk", "broker producer worker_node", "a bridge meets its node through frames alone"),
    rule("bridge_sdk", "pika psutil pydantic rich typer", "a bridge starts in milliseconds"),
    rule(
        "bridge_sdk",
        "asyncio",
        "a bridge starts in milliseconds, unless a command is async",
        except_in="bridge_sdk.async_server",
        lazily=True,
    ),
    rule("bridge_protocol", "pydantic pydantic_core", "it costs 100 ms", except_in="bridge_protocol.api"),
    rule(
        "bridge_sdk",
        "bridge_protocol.api bridge_sdk.implementation",
        "a bridge starts in milliseconds, unless it implements an Api: that needs pydantic",
        except_in="bridge_sdk.implementation",
        lazily=True,
    ),
    rule(
        "producer",
        "bridge_protocol.api producer.bound",
        "it needs pydantic, which costs 100 ms: only for those who bind",
        except_in="producer.bound",
        lazily=True,
    ),
    rule("bridge_sdk", "bridge_sdk.async_server", "it imports asyncio: only for async commands", lazily=True),
)
# Of our own, the pure core may import the protocol and itself: the rest of its package reaches the system.
CORE = "worker_node.core"
CORE_WHY = "the rest of worker_node does IO; the core must not reach it"


@dataclass(frozen=True)
class Import:
    """`module` is what is imported, with the name taken from it where there is one; `lazy`: not at start."""

    module: str
    line: int
    lazy: bool


def imports(source: str, importer: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import in `source`, the text of the module `importer`, also those made by a call with a constant."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names, lineno=line):
                for alias in names:
                    yield Import(alias.name, line, lazy)
            case ast.ImportFrom(module=module, names=names, level=level, lineno=line):
                parts = importer.split(".")
                above = parts[: len(parts) - level + is_package] if level else []
                start = ".".join([*above, *([module] if module else [])])
                for alias in names:
                    yield Import(f"{start}.{alias.name}", line, lazy)
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(module)), *_]
            ):
                if name in ("__import__", "import_module"):
                    yield Import(module, node.lineno, lazy)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                lazy = True
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for inner in node.body:
                    yield from visit(inner, True)
                for inner in node.orelse:
                    yield from visit(inner, lazy)
                return
        for inner in ast.iter_child_nodes(node):
            yield from visit(inner, lazy)

    yield from visit(ast.parse(source), False)


def inside(module: str, package: str) -> bool:
    return not package or module == package or module.startswith(package + ".")


def breaches(source: str, importer: str, file: str, *, is_package: bool = False) -> list[str]:
    """Each breach of a rule in `source`: file, line and rule."""
    found = []
    for imported in imports(source, importer, is_package=is_package):
        where = f"{file}:{imported.line}: {importer} imports {imported.module}"
        for rule in RULES:
            if not inside(importer, rule.within) or (rule.except_in and inside(importer, rule.except_in)):
                continue
            if rule.lazily and imported.lazy:
                continue
            if any(inside(imported.module, never) for never in rule.never):
                found.append(f"{where}: {rule.within or 'anything'} never does: {rule.why}")
        if inside(importer, CORE) and inside(imported.module, "worker_node") and not inside(imported.module, CORE):
            found.append(f"{where}: {CORE} never does: {CORE_WHY}")
    return found


def modules() -> Iterator[tuple[Path, str]]:
    """The source files of the packages, each with the dotted name it is imported by."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_source_keeps_the_rules() -> None:
    found = [
        breach
        for path, name in modules()
        for breach in breaches(
            path.read_text(encoding="utf-8"),
            name,
            str(path.relative_to(ROOT)),
            is_package=path.name == "__init__.py",
        )
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_whole_source_is_looked_at() -> None:
    seen = {name for _, name in modules()}
    assert {"bridge_protocol", "bridge_protocol.codec", "broker.contract", "worker_node.core"} <= seen
    everything = {".".join(path.relative_to(ROOT).with_suffix("").parts[:1]) for path, _ in modules()}
    assert everything == set(PACKAGES)


def test_what_the_rules_allow_to_one_home_lives_there() -> None:
    """A rule that names a home nobody lives in any more guards nothing."""
    imported_by: dict[str, set[str]] = {"orjson": set(), "pika": set()}
    for path, name in modules():
        for imported in imports(path.read_text(encoding="utf-8"), name, is_package=path.name == "__init__.py"):
            root = imported.module.split(".")[0]
            if root in imported_by:
                imported_by[root].add(name)
    assert imported_by["orjson"] == {"bridge_protocol.codec"}
    assert imported_by["pika"]
    assert all(inside(name, "broker") for name in imported_by["pika"])


# ---- the checker itself, on small modules


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("bridge_protocol.frames", "import os"),
        ("bridge_protocol.frames", "import os.path"),
        ("bridge_protocol.frames", "x = 1\nif x:\n    from threading import Lock"),
        ("bridge_protocol.frames", "from time import monotonic"),
        ("bridge_protocol.frames", "def f():\n    import socket"),
        ("bridge_protocol.frames", "import orjson"),
        ("bridge_protocol.frames", "from broker import contract"),
        ("bridge_protocol.frames", "__import__('broker')"),
        ("bridge_protocol.codec", "import pika"),
        ("broker.amqp", "from producer.client import Client"),
        ("broker.amqp", "import orjson as json"),
        ("broker.amqp", "import quaybridge"),
        ("producer.client", "import pika"),
        ("producer.client", "from pika.adapters import asyncio_connection"),
        ("producer.client", "import worker_node.core.pool"),
        ("producer.client", "import importlib\nimportlib.import_module('bridge_sdk')"),
        ("worker_node.node", "import bridge_sdk"),
        ("worker_node.node", "if TYPE_CHECKING:\n    from bridge_sdk import Bridge"),
        ("worker_node.node", "from producer import Producer"),
        ("worker_node.node", "from quaybridge.settings import Settings"),
        ("worker_node.node", "import tests.fast"),
        ("worker_node.core.pool", "import time"),
        ("worker_node.core.pool", "import asyncio"),
        ("worker_node.core.pool", "from random import random"),
        ("worker_node.core.pool", "import broker.contract"),
        ("worker_node.core.pool", "from worker_node.settings import Settings"),
        ("worker_node.core.pool", "from ..settings import Settings"),
        ("worker_node.core.pool", "from .. import settings"),
        ("worker_node.core", "from worker_node import settings"),
        ("bridge_sdk.bridge", "import asyncio"),
        ("bridge_sdk.bridge", "class Bridge:\n    import asyncio"),
        ("bridge_sdk.bridge", "try:\n    import asyncio\nexcept ImportError:\n    pass"),
        ("bridge_sdk.bridge", "from asyncio import run"),
        ("bridge_sdk.bridge", "from bridge_sdk.async_server import AsyncServer"),
        ("bridge_sdk.bridge", "def f():\n    import pika"),
        ("bridge_sdk.bridge", "from bridge_sdk.implementation import commands_of_api"),
        ("producer.producer", "from producer.bound import bind"),
        ("bridge_protocol.messages", "def f():\n    import pydantic"),
        ("bridge_sdk.bridge", "from worker_node.core import pool"),
    ],
)
def test_a_breach_is_found_with_file_line_and_rule(importer: str, source: str) -> None:
    found = breaches(source, importer, "some/file.py")
    assert found
    line = next(
        number for number, text in enumerate(source.splitlines(), 1) if "import" in text and text != "import importlib"
    )
    assert found[0].startswith(f"some/file.py:{line}: {importer} imports ")
    assert ": " in found[0].split(" never does")[1]


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("bridge_protocol.codec", "import orjson, json"),
        ("bridge_protocol.frames", "from bridge_protocol.errors import FrameError"),
        ("bridge_protocol.frames", "from datetime import UTC"),
        ("bridge_protocol.frames", "x = 'import os'  # import os"),
        ("bridge_protocol.frames", "import ostrich, timeline"),
        ("broker.amqp", "import pika\nimport asyncio"),
        ("producer.client", "from broker.contract import Broker\nimport threading"),
        (
            "worker_node.node",
            "import asyncio, os, time\nfrom worker_node.core import pool\nfrom broker import contract",
        ),
        ("worker_node.core.pool", "from worker_node.core.slot import Slot\nfrom bridge_protocol.errors import Code"),
        ("worker_node.core.pool", "from .slot import Slot\nfrom . import slot"),
        ("bridge_sdk.bridge", "async def f():\n    import asyncio"),
        ("bridge_sdk.bridge", "if TYPE_CHECKING:\n    import asyncio"),
        ("bridge_sdk.bridge", "def f():\n    from bridge_sdk.async_server import AsyncServer"),
        ("bridge_sdk.async_server", "import asyncio"),
        ("bridge_sdk.bridge", "def f():\n    from bridge_sdk.implementation import commands_of_api"),
        ("bridge_sdk.implementation", "from bridge_protocol.api import Api"),
        ("bridge_sdk.bridge", "import os, threading\nfrom bridge_protocol import frames"),
        ("quaybridge.program", "import producer, worker_node, broker, bridge_sdk, quaybridge.settings"),
    ],
)
def test_what_is_allowed_is_not_reported(importer: str, source: str) -> None:
    assert breaches(source, importer, "some/file.py") == []


def test_a_packages_own_relative_imports_are_resolved() -> None:
    assert [i.module for i in imports("from .slot import Slot", "worker_node.core", is_package=True)] == [
        "worker_node.core.slot.Slot"
    ]
    assert [i.module for i in imports("from ..settings import Seconds", "worker_node.core", is_package=True)] == [
        "worker_node.settings.Seconds"
    ]
    assert [i.module for i in imports("from .settings import Seconds", "worker_node.node")] == [
        "worker_node.settings.Seconds"
    ]


# ---- what else is true of every file


def test_every_package_is_typed_for_those_who_import_it() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(PACKAGES) <= set(configuration["tool"]["mypy"]["packages"])
    assert configuration["tool"]["mypy"]["strict"] is True
    assert configuration["tool"]["setuptools"]["package-data"] == {"*": ["py.typed"]}
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file(), package
        for path in (ROOT / package).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path}: in no package, so it would not be installed"


MACHINE_PATH = re.compile(r"(?<![\w.-])/" + r"work/|\.\./" + r"shared\b")
SKIPPED = {
    ".git",
    ".venv",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "__pycache__",
    "build",
    "dist",
}
TEXT = {".py", ".md", ".toml", ".cfg", ".ini", ".json", ".yml", ".yaml", ".sh", ".txt", ".typed", ".js", ".html", ""}


def files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.name in SKIPPED or path.name.endswith(".egg-info") or path.is_symlink():
            continue
        if path.is_dir():
            yield from files(path)
        elif path.suffix in TEXT:
            yield path


def machine_paths(text: str) -> list[int]:
    """The lines of `text` that name a directory of somebody's machine."""
    return [number for number, line in enumerate(text.splitlines(), 1) if MACHINE_PATH.search(line)]


def test_no_file_names_a_directory_of_somebodys_machine() -> None:
    """It would work there and nowhere else. Only `.ci/run` knows where it runs."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files(ROOT)
        if path.relative_to(ROOT).as_posix() != ".ci/run"
        for line in machine_paths(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found, "\n".join(found)


def test_machine_paths_are_found() -> None:
    slash = "/"
    text = "\n".join(["", f"cd {slash}work/main", f"..{slash}shared/bin", f'open("{slash}work/x")', f"a{slash}work/b"])
    assert machine_paths(text) == [2, 3, 4]
