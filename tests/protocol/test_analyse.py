"""The demo's bridge as a real process: the same results as in-process, and errors that say where."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipe_client import Client

from bridge_protocol.messages import Result
from examples.analyse.analysis import Unparsable, read, summarise

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Client]:
    client = Client([sys.executable, "-m", "examples.analyse"], tmp_path / "stderr")
    capabilities = client.shake_hands()["capabilities"]
    assert capabilities["commands"] == ["summarise"]
    yield client
    client.hang_up()
    assert client.wait() == 0
    assert client.stderr() == ""
    client.close()


def test_files_of_the_standard_library_come_out_as_in_process(bridge: Client) -> None:
    paths = sorted(STDLIB.glob("*/*.py"))[::20]
    # Files that are wrong on purpose, where the distribution has them.
    paths += sorted(STDLIB.glob("lib2to3/tests/data/*.py")) + sorted(STDLIB.glob("test/**/bad*.py"))
    assert len(paths) > 20
    for path in map(str, paths):
        bridge.send("summarise", path=path)
        reply = bridge.receive()
        if isinstance(reply, Result):
            assert reply.result == summarise(read(path), path)
        else:
            with pytest.raises(Unparsable) as caught:
                summarise(read(path), path)
            where = {"line": caught.value.line, "column": caught.value.column, "text": caught.value.text}
            assert reply.info is not None
            assert reply.info.details == {"path": path, **where}


def test_source_may_be_given_as_text(bridge: Client) -> None:
    assert bridge.call("summarise", source="def f(): pass")["complexity"] == {"f": 1}
    failure = bridge.fail("summarise", source="def f(:")
    assert failure.error == "ApplicationError: <source>:1: invalid syntax"


def test_a_file_that_does_not_parse_says_where(bridge: Client, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("a = 1\nb = = 2\n")
    failure = bridge.fail("summarise", path=str(path))
    assert failure.error == f"ApplicationError: {path}:2: invalid syntax"
    assert failure.info is not None
    assert failure.info.details == {"path": str(path), "line": 2, "column": 5, "text": "b = = 2"}


def test_a_file_that_is_not_there_says_so(bridge: Client, tmp_path: Path) -> None:
    failure = bridge.fail("summarise", path=str(tmp_path / "none.py"))
    assert failure.error == f"ApplicationError: {tmp_path}/none.py: No such file or directory"


@pytest.mark.parametrize("args", [{}, {"path": "a.py", "source": "a"}], ids=["neither", "both"])
def test_either_a_path_or_source_is_wanted(bridge: Client, args: dict[str, str]) -> None:
    assert bridge.fail("summarise", **args).error == "ApplicationError: give either path or source"
