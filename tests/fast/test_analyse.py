"""The demo's analysis, in-process: what it counts, and how it says where a file is wrong."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from examples.analyse.analysis import Totals, Unparsable, read, summarise, total

STDLIB = Path(sysconfig.get_path("stdlib"))

COMPLEXITY = [
    ("pass", 1),
    ("if a: pass", 2),
    ("if a: pass\n elif b: pass\n else: pass", 3),
    ("return 1 if a else 2", 2),
    ("for x in y: pass\n else: pass", 2),
    ("while a: pass", 2),
    ("try: pass\n except A: pass\n except B: pass\n finally: pass", 3),
    ("return a and b and c or d", 4),
    ("return [x for x in y if x if z]", 4),
    ("return {x: 1 for x in y for z in x}", 3),
    ("match a:\n  case 1: pass\n  case _: pass", 3),
    ("return lambda: 1 if a else 2", 2),
    ("with a: pass", 1),
    ("assert a", 1),
]


@pytest.mark.parametrize(("body", "expected"), COMPLEXITY)
def test_complexity(body: str, expected: int) -> None:
    assert summarise(f"def f():\n {body}\n", "f.py")["complexity"] == {"f": expected}


def test_a_summary() -> None:
    source = (
        "import os, sys\n"
        "from .. import near\n"
        "from os import path\n"
        "from .sibling import x\n"
        "class A(B):\n"
        "    async def run(self):\n"
        "        async for x in y: pass\n"
        "        def inner():\n"
        "            if x: import json\n"
        "    @property\n"
        "    def size(self): return 1\n"
        "    @size.setter\n"
        "    def size(self, value): return value or 2\n"
        "    class Nested:\n"
        "        def f(self): pass"
    )
    assert summarise(source, "a.py") == {
        "path": "a.py",
        "lines": 15,
        "functions": 5,
        "classes": 2,
        "imports": ["..", ".sibling", "json", "os", "sys"],
        "complexity": {"A.Nested.f": 1, "A.run": 2, "A.run.<locals>.inner": 2, "A.size": 2},
    }


@pytest.mark.parametrize(("source", "lines"), [("", 0), ("\n", 1), ("a", 1), ("a\n", 1), ("a\n\nb", 3)])
def test_lines(source: str, lines: int) -> None:
    assert summarise(source, "x.py")["lines"] == lines


@pytest.mark.parametrize(
    ("source", "line", "column", "text"),
    [
        ("a = 1\nb = = 2\n", 2, 5, "b = = 2"),
        ("def f(:\n", 1, 7, "def f(:"),
        ("€ = 2", 1, 1, "€ = 2"),
    ],
)
def test_source_that_does_not_parse_says_where(source: str, line: int, column: int, text: str) -> None:
    with pytest.raises(Unparsable) as caught:
        summarise(source, "x.py")
    assert (caught.value.line, caught.value.column, caught.value.text) == (line, column, text)


@pytest.mark.parametrize("source", ["\0", "-" * 100_000 + "1", "(" * 5000, "'\ud800'"])
def test_source_no_parser_takes_is_unparsable_too(source: str) -> None:
    with pytest.raises(Unparsable):
        summarise(source, "x.py")


def test_a_tree_deeper_than_the_stack_is_walked() -> None:
    source = "def f(): return (a if b else c)" + " + a" * 2500
    assert summarise(source, "x.py")["complexity"] == {"f": 2}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a = 1\r\nb = 2\rc", "a = 1\nb = 2\nc"),
        (b"\xef\xbb\xbfa", "a"),
        (b"# -*- coding: latin-1 -*-\n'\xe4'", "# -*- coding: latin-1 -*-\n'ä'"),
    ],
)
def test_a_file_is_read_in_the_encoding_it_declares(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(data)
    assert read(str(path)) == text


@pytest.mark.parametrize(
    ("data", "line", "column"),
    [
        (b"a = 1\nb = '\xe4'\n", 2, 6),
        (b"\n\n\n# \xff", 4, 3),
        (b"#!python\n# coding: klingon\n", 2, None),
        (b"# coding: klingon\n", 1, None),
    ],
)
def test_a_file_in_no_encoding_says_where(tmp_path: Path, data: bytes, line: int, column: int | None) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(data)
    with pytest.raises(Unparsable) as caught:
        read(str(path))
    assert (caught.value.line, caught.value.column) == (line, column)


def test_totals_do_not_depend_on_the_order() -> None:
    summaries = [
        summarise("import os\ndef f(): pass\n", "a.py"),
        summarise("import os, re\nclass A:\n def g(self, x): return x or 1\n", "b.py"),
        summarise("", "c.py"),
    ]
    expected = Totals(files=3, lines=5, functions=2, classes=1, imports=2, complexity=3, highest_complexity=2)
    assert total(summaries) == total(reversed(summaries)) == expected
    assert total([]) == Totals(files=0, lines=0, functions=0, classes=0, imports=0, complexity=0, highest_complexity=0)


def test_real_source_is_summarised() -> None:
    path = STDLIB / "inspect.py"
    summary = summarise(read(str(path)), str(path))
    assert summary["functions"] > 100
    assert "Signature.bind" in summary["complexity"]
    assert "functools" in summary["imports"]
