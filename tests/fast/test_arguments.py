"""The arguments of a request on a command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_protocol.codec import encode
from quaybridge.arguments import read_arguments

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("pairs", "arguments"),
    [
        ([], {}),
        (["path=setup.py"], {"path": "setup.py"}),
        (["empty="], {"empty": ""}),
        (["text=a=b:=c"], {"text": "a=b:=c"}),
        (["two=lines\nof it"], {"two": "lines\nof it"}),
        (["n:=3", "f:=0.5", "no:=null", "yes:=true", 's:="t"'], {"n": 3, "f": 0.5, "no": None, "yes": True, "s": "t"}),
        (['list:=[1, {"a": []}]'], {"list": [1, {"a": []}]}),
        (["a:b=c"], {"a:b": "c"}),
        (["a@b=c", "me=me@=x"], {"a@b": "c", "me": "me@=x"}),
        ([":=1"], {":": "1"}),
    ],
)
def test_pairs(pairs: list[str], arguments: dict[str, object]) -> None:
    assert read_arguments(pairs) == arguments


def test_a_pair_may_name_a_file(tmp_path: Path) -> None:
    (tmp_path / "a=b").write_bytes(b"\xff\x00")
    assert read_arguments([f"image@={tmp_path}/a=b"]) == {"image": b"\xff\x00"}


def test_pairs_add_to_a_whole_object() -> None:
    assert read_arguments(["b=2"], '{"a": 1}') == {"a": 1, "b": "2"}
    assert read_arguments([], b'{"a": "\xc3\xa9"}') == {"a": "é"}


@given(st.dictionaries(st.text(st.characters(exclude_characters="=:", codec="utf-8"), min_size=1), JSON, max_size=4))
def test_anything_json_can_say_can_be_said(arguments: dict[str, object]) -> None:
    pairs = [f"{key}:={encode(value).decode()}" for key, value in arguments.items()]
    assert read_arguments(pairs) == arguments
    assert read_arguments([], encode(arguments)) == arguments


@pytest.mark.parametrize(
    ("pairs", "whole", "told"),
    [
        (["path"], None, "'path' is no argument: write key=text, key:=json or key@=file"),
        (["=x"], None, "'=x' is no argument: write key=text, key:=json or key@=file"),
        ([""], None, "'' is no argument"),
        (["a=1", "a:=2"], None, "the argument 'a' is given twice"),
        (["a=1"], '{"a": 2}', "the argument 'a' is given twice"),
        (["a:=b"], None, 'a:=b is not JSON (Expecting value: line 1 column 1 (char 0)): a text is a:="b"'),
        (["a:="], None, "a:= is not JSON"),
        (["a@=/no/such"], None, "a@=/no/such cannot be read: No such file or directory"),
        (["a@=\0"], None, "a@=\0 cannot be read: embedded null byte"),
        (["a:=NaN"], None, "a:=NaN is not JSON (NaN is no JSON number)"),
        (["a:=-Infinity"], None, "a:=-Infinity is not JSON"),
        (["a:=1, 2"], None, "a:=1, 2 is not JSON (Extra data"),
        (["a:=" + "[" * 100_000], None, "a:= is nested too deep"),
        ([], "[1]", "--args should be a JSON object: bad_start"),
        ([], "{", "--args should be a JSON object: bad_json"),
        ([], "", "--args should be a JSON object: bad_start"),
        ([], b'{"a": "\xff"}', "--args should be a JSON object: bad_utf8"),
        ([], '{"a": "\udcff"}', "--args should be a JSON object"),
    ],
)
def test_what_cannot_be_read(pairs: list[str], whole: str | bytes | None, told: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(told)):
        read_arguments(pairs, whole)
