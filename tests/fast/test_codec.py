"""JSON that every parser reads the same: accepted and refused by example, against a strict reading, and in time."""

from __future__ import annotations

import gc
import json
import math
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime
from enum import Enum, IntEnum, StrEnum
from typing import Any, ClassVar
from uuid import UUID

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vectors import cases, octets

from bridge_protocol import codec
from bridge_protocol.errors import FrameError, FrameKind

NAN = math.nan
INFINITY = math.inf
MIB = 2**20


def same(left: Any, right: Any) -> bool:
    """Equal in type and value all the way down; floats bit for bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    return bool(left == right)


def refusal(payload: bytes | bytearray) -> FrameError | None:
    try:
        codec.decode(payload)
    except FrameError as error:
        return error
    return None


@pytest.mark.parametrize("case", cases("payloads.json"))
@pytest.mark.parametrize("kind_of_bytes", [bytes, bytearray])
def test_a_payload_gives_its_value_or_its_error(case: dict[str, Any], kind_of_bytes: Callable[[bytes], bytes]) -> None:
    payload = kind_of_bytes(octets(case["payload"]))
    if "error" in case:
        error = refusal(payload)
        assert error is not None
        assert error.kind == case["error"]
        assert error.preview in payload
        assert len(str(error)) < 500
    else:
        assert same(codec.decode(payload), case["value"])
        if "canonical" in case:
            assert (codec.encode(case["value"]) == payload) == case["canonical"]


@pytest.mark.parametrize("case", [case for case in cases("payloads.json") if "error" not in case.values[0]])
def test_spaces_change_nothing(case: dict[str, Any]) -> None:
    assert same(codec.decode(json.dumps(case["value"], indent=1).encode()), case["value"])


def test_the_preview_shows_the_offending_bytes() -> None:
    error = refusal(b'{"a":"' + b"x" * 500 + b'\xff"}')
    assert error is not None
    assert error.preview == b'\xff"}'


def test_an_error_does_not_hold_the_payload() -> None:
    payload = b'{"a":"' + b"x" * MIB
    error = refusal(payload)
    assert error is not None
    assert error.__context__ is None
    del error
    gc.collect()


# ---- a strict reading, written for clearness, to compare with


class Refused(Exception):
    pass


def deepest(text: str) -> int:
    """How deep a JSON text nests, read one character at a time."""
    depth = most = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            in_string = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            most = max(most, depth)
        elif character in "]}":
            depth -= 1
    return most


def strictly(payload: bytes) -> dict[str, Any]:
    """What the standard library reads, once all that another parser might read differently is refused."""

    def refuse(text: str) -> Any:
        raise Refused(text)

    def integer(text: str) -> int:
        digits = text.lstrip("-").lstrip("0")
        if len(digits) > 20 or not -(2**63) <= int(text) < 2**64:
            raise Refused(text)
        return int(text)

    def number(text: str) -> float:
        if math.isinf(float(text)):
            raise Refused(text)
        return float(text)

    objects: list[list[tuple[str, Any]]] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        objects.append(items)
        return dict(items)

    if payload[:1] != b"{":
        raise Refused("start")
    text = payload.decode("utf-8")
    value = json.loads(text, parse_int=integer, parse_float=number, parse_constant=refuse, object_pairs_hook=pairs)
    json.dumps(objects, ensure_ascii=False).encode()  # no lone surrogates, also where a second value replaced a first
    if deepest(text) > codec.MAX_DEPTH:
        raise Refused("depth")
    if len(objects[-1]) != len(dict(objects[-1])):
        raise Refused("twice")
    return value  # type: ignore[no-any-return]  # it begins with a brace


@contextmanager
def long_from(size: int) -> Iterator[None]:
    """Texts of `size` bytes are long ones, and looked at in pieces of so many."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LONG", size), ("LARGE", 0), ("PIECE", size)):
            patch.setattr(codec, name, value)
        yield


def surveyed(found: Any, value: Any) -> bool:
    """Whether `found` is `value`, but for texts of which there is nothing left."""
    if isinstance(value, dict) and isinstance(found, dict):
        return found.keys() == value.keys() and all(surveyed(found[key], value[key]) for key in value)
    if isinstance(value, list) and isinstance(found, list):
        return len(found) == len(value) and all(map(surveyed, found, value))
    return same(found, value) or (isinstance(value, str) and found == "")


def agree(payload: bytes) -> bool:
    """Whether the codec and the strict reading agree on `payload`, and accept it. Fails if they do not agree."""
    try:
        value = strictly(payload)
    except (ValueError, RecursionError, Refused):
        for size in (1, 3):
            with long_from(size):
                with pytest.raises(FrameError):
                    codec.decode(payload)
                with pytest.raises(FrameError):
                    codec.survey(payload)
        return False
    for size in (1, 3):
        with long_from(size):
            assert same(codec.decode(payload), value)
            assert surveyed(codec.survey(payload), value)
    assert same(codec.decode(payload), value)
    assert same(orjson.loads(payload), value)
    assert same(json.loads(payload), value)
    return True


SPACE = st.text(" \t\r\n", max_size=2)
DIGITS = st.text("0123456789", min_size=1, max_size=40)
ODD_NUMBERS = """
    0 -0 -0.0 1e2 1E+2 1.0E-2 1E400 -1E400 1e-400 5e-324 2.4703282292062327e-324 2.4703282292062328e-324
    1.7976931348623158e308 1.7976931348623159e308 9007199254740993 9007199254740993.0 0e999999999999
    18446744073709551615 18446744073709551616 18446744073709551616.0 -9223372036854775808 -9223372036854775809
    9223372036854775807 9223372036854775808 99999999999999999999 100000000000000000000 01 +1 .5 1. NaN Infinity
""".split()  # noqa: SIM905  # so many quotes would hide them
NUMBER = st.one_of(
    st.sampled_from(ODD_NUMBERS),
    st.integers().map(str),
    st.integers(-(2**65), 2**65).map(str),
    st.floats().map(repr),
    st.tuples(st.sampled_from(["", "-"]), DIGITS, DIGITS, st.sampled_from(["", "e5", "E-300", "e+290", "e-330"])).map(
        lambda parts: f"{parts[0]}{parts[1].lstrip('0') or '0'}.{parts[2]}{parts[3]}"
    ),
)
ODD_CHARACTERS = r"""
    \" \\ \/ \n \u0000 \u0022 \u005c \u0061 \ud83d\ude00 \ud800 \udc00 \x [ ] { } : , 1234567890123456789 a b
""".split()  # noqa: SIM905  # so many quotes would hide them
ANY_CHARACTER = st.characters(exclude_categories=["Cs"])
CHARACTER = st.one_of(
    st.sampled_from([*ODD_CHARACTERS, "\u2028", "\x7f", "\ufeff", "😀"]),
    ANY_CHARACTER.filter(lambda character: character not in '"\\'),
)
STRING = st.lists(CHARACTER, max_size=5).map(lambda parts: '"' + "".join(parts) + '"')
KEY = st.one_of(st.sampled_from(['"a"', '"b"', r'"\u0061"', '""']), STRING)


def _spaced(parts: list[str], brackets: str) -> st.SearchStrategy[str]:
    return SPACE.map(lambda space: brackets[0] + space + (space + "," + space).join(parts) + space + brackets[1])


def _objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(KEY, SPACE, values).map(lambda parts: f"{parts[0]}{parts[1]}:{parts[1]}{parts[2]}")
    return st.lists(pair, max_size=4).flatmap(lambda parts: _spaced(parts, "{}"))


VALUE = st.recursive(
    st.one_of(NUMBER, STRING, st.sampled_from(["true", "false", "null"])),
    lambda inner: st.one_of(
        _objects(inner),
        st.lists(inner, max_size=4).flatmap(lambda parts: _spaced(parts, "[]")),
        st.tuples(inner, st.sampled_from([1, 60, 125, 126, 127, 128, 200])).map(
            lambda parts: "[" * parts[1] + parts[0] + "]" * parts[1]
        ),
    ),
    max_leaves=8,
)


@given(_objects(VALUE))
@example('{"a":"\\\\","b":"\\"[","c":[[]]}')
@example('{"a": 1, "\\u0061": 2}')
@example('{"a": {"b": 18446744073709551616, "b": 1}}')
@example('{"a": 1E400, "b": "\\ud800"}')
def test_exotic_json_means_the_same_to_every_parser_or_is_refused(text: str) -> None:
    agree(text.encode())


@given(_objects(VALUE), st.data())
def test_json_with_a_broken_byte_means_the_same_or_is_refused(text: str, data: st.DataObject) -> None:
    payload = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(payload)))
        change = data.draw(
            st.sampled_from([b"", b'"', b"\\", b",", b"{", b"]", b"\x00", b"\xff", b"1", b"\xed\xa0\x80"])
        )
        payload[place : place + data.draw(st.integers(0, 1))] = change
    agree(bytes(payload))


@given(st.one_of(st.binary(), st.binary().map(lambda tail: b"{" + tail)))
def test_any_bytes_are_read_or_refused_with_a_frame_error(payload: bytes) -> None:
    agree(payload)


NUMBERS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False))
TEXT = st.text(ANY_CHARACTER, max_size=10)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=10,
)
OBJECT = st.dictionaries(TEXT, PLAIN, max_size=4)


@given(OBJECT)
def test_what_is_encoded_is_decoded(value: dict[str, Any]) -> None:
    payload = codec.encode(value)
    assert same(codec.decode(payload), value)
    assert same(json.loads(payload), value)
    for other_encoder in (
        json.dumps(value),
        json.dumps(value, ensure_ascii=False, indent=2),
        json.dumps(value, separators=(",", ":")),
    ):
        assert same(codec.decode(other_encoder.encode()), value)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 30))
def test_floats_with_any_number_of_digits_are_read_alike(number: float, digits: int) -> None:
    agree(b'{"a":%s}' % f"{number:.{digits}e}".encode())
    agree(b'{"a":%s}' % f"{number:.{digits}f}".encode())


# ---- long texts


SMALL = 64  # bytes of a piece, here
PLACES = range(SMALL - 16, SMALL + 16)


@pytest.mark.parametrize("character", [r"\ud83d\ude00", r"\u00e4", r"\\", r"\"", "😀", "ä", "x"])
def test_a_long_text_is_looked_at_whole_wherever_its_pieces_end(character: str) -> None:
    for place in PLACES:
        payload = b'{"a":"%s","b":1}' % ("y" * place + character * 40).encode()
        with long_from(SMALL):
            whole = codec.decode(payload)
            assert same(whole, json.loads(payload))
            # Where a text ends is not looked for behind many escapes.
            assert codec.survey(payload) == ({**whole, "a": ""} if character not in (r"\\", r"\"") else whole)


@pytest.mark.parametrize("wrong", [r"\ud83d", r"\ud83dy\ude00", r"\x", "\n", "\0", "\x1f"])
def test_what_no_text_may_hold_is_found_wherever_the_pieces_end(wrong: str) -> None:
    for place in PLACES:
        payload = b'{"a":"%s","b":1}' % ("y" * place + wrong + "y" * 100).encode()
        with long_from(SMALL), pytest.raises(FrameError) as refused:
            codec.survey(payload)
        assert refused.value.kind is FrameKind.BAD_JSON


@pytest.mark.parametrize("wrong", [b"\xff", b"\xe2\x82", b"\xed\xa0\x80", b"\x80", b"\xf0\x9f\x98"])
def test_what_is_no_utf8_is_found_wherever_the_pieces_end_and_quoted(wrong: bytes) -> None:
    for place in PLACES:
        payload = b'{"a":"%s%s%s","b":1}' % (b"y" * place, wrong, b"y" * 100)
        with long_from(SMALL), pytest.raises(FrameError) as refused:
            codec.survey(payload)
        assert refused.value.kind is FrameKind.BAD_UTF8
        assert refused.value.preview.startswith(wrong)


LONG_TEXT = "[{null" * 4000
LONG_BYTES = LONG_TEXT.encode()


def test_what_stands_beside_a_long_text_is_checked_as_ever() -> None:
    deep = b'{"t":"%s","a":%s}' % (LONG_BYTES, b"[" * 200 + b"]" * 200)
    for payload, kind in (
        (b'{"t":"%s","a":18446744073709551616}' % LONG_BYTES, FrameKind.BAD_JSON),
        (b'{"a":1,"t":"%s","a":2}' % LONG_BYTES, FrameKind.BAD_ENVELOPE),
        (b'{"t":"%s","t":"%s"}' % (LONG_BYTES, LONG_BYTES), FrameKind.BAD_ENVELOPE),
        (b'{"%s":1,"%s":2}' % (LONG_BYTES, LONG_BYTES), FrameKind.BAD_ENVELOPE),
        (b'{"t":"%s","a":}' % LONG_BYTES, FrameKind.BAD_JSON),
        (b'{"t":"%s"' % LONG_BYTES, FrameKind.BAD_JSON),
        (b'{"t":"%s' % LONG_BYTES, FrameKind.BAD_JSON),
        (deep, FrameKind.TOO_DEEP),
    ):
        for read in (codec.decode, codec.survey):
            with pytest.raises(FrameError) as refused:
                read(payload)
            assert refused.value.kind is kind
    accepted = b'{"%s": 1, "%s?": 2, "t": "%s"}' % (LONG_BYTES, LONG_BYTES, LONG_BYTES)
    assert codec.decode(accepted) == {LONG_TEXT: 1, LONG_TEXT + "?": 2, "t": LONG_TEXT}
    assert codec.survey(accepted) == {LONG_TEXT: 1, LONG_TEXT + "?": 2, "t": ""}


def test_nan_is_refused_and_depth_counted_beside_a_long_text() -> None:
    assert codec.decode(codec.encode({"t": LONG_TEXT, "a": None})) == {"t": LONG_TEXT, "a": None}
    assert json.loads(codec.encode(LONG_TEXT)) == LONG_TEXT
    for value in (NAN, [[NAN]], {"b": INFINITY}):
        with pytest.raises(ValueError, match="NaN"):
            codec.encode({"a": value, "t": LONG_TEXT})
    deep: list[Any] = []
    for _ in range(codec.MAX_DEPTH):
        deep = [deep]
    with pytest.raises(ValueError, match="deeper"):
        codec.encode({"t": LONG_TEXT, "a": deep})


def test_a_survey_takes_no_memory_for_long_texts() -> None:
    payload = codec.encode({"id": 7, "args": {"text": "ä" * 4 * MIB, "more": ["x" * MIB, 1]}})
    tracemalloc.start()
    try:
        found = codec.survey(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == {"id": 7, "args": {"text": "", "more": ["", 1]}}
    assert peak < MIB


# ---- encode


class Colour(Enum):
    RED = "red"
    UNKNOWN = NAN
    SOME = [1.0, INFINITY]  # noqa: RUF012  # a list as a value, on purpose


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    NULL = "null"


@dataclass
class Point:
    x: Any
    y: Any = 0
    _hidden: float = NAN
    ORIGIN: ClassVar[float] = NAN
    scale: InitVar[float] = NAN
    late: float = field(init=False)


@dataclass(slots=True)
class Slotted:
    x: Any


class Names(dict[str, Any]):
    pass


class Values(list[Any]):
    pass


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        (None, b"null"),
        ("null", b'"null"'),
        ([1, (2, 3)], b"[1,[2,3]]"),
        ({"é": "\u2028"}, '{"é":"\u2028"}'.encode()),
        (2**64 - 1, b"18446744073709551615"),
        (-(2**63), b"-9223372036854775808"),
        (-0.0, b"-0.0"),
        (datetime(2024, 5, 1, 12, tzinfo=UTC), b'"2024-05-01T12:00:00+00:00"'),
        (date(2024, 5, 1), b'"2024-05-01"'),
        (UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (Colour.RED, b'"red"'),
        (Level.HIGH, b"3"),
        ([Word.NULL, None], b'["null",null]'),
        (Point(None, [1]), b'{"x":null,"y":[1]}'),
        (Slotted(None), b'{"x":null}'),
        (Names(a=None), b'{"a":null}'),
        (Values([None, 1.5]), b"[null,1.5]"),
    ],
)
def test_what_can_be_encoded(value: Any, payload: bytes) -> None:
    assert codec.encode(value) == payload


@pytest.mark.parametrize("number", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize(
    "around",
    [
        lambda number: number,
        lambda number: {"a": number},
        lambda number: {"a": [None, 1, ({"b": number},)]},
        lambda number: [Point(number)],
        lambda number: Point(1, [number]),
        lambda number: Slotted({"a": number}),
        lambda number: Names(a=number),
        lambda number: Values([number]),
    ],
)
def test_nan_and_infinity_are_refused_wherever_they_hide(around: Callable[[float], Any], number: float) -> None:
    with pytest.raises(ValueError, match="NaN and infinity"):
        codec.encode(around(number))


@pytest.mark.parametrize("value", [Colour.UNKNOWN, {"a": Colour.SOME}, Slotted(Colour.UNKNOWN)])
def test_nan_and_infinity_are_refused_in_enums(value: Any) -> None:
    with pytest.raises(ValueError, match="NaN and infinity"):
        codec.encode(value)


def test_nan_is_refused_in_what_was_set_on_a_dataclass_beside_its_fields() -> None:
    point = Point(1)
    point.extra = NAN  # type: ignore[attr-defined]  # orjson writes it
    with pytest.raises(ValueError, match="NaN and infinity"):
        codec.encode(point)


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        2**64,
        -(2**63) - 1,
        {1: 2},
        {None: 1},
        {Word.NULL: 1},
        {date(2024, 5, 1): 1},
        "\ud800",
        {"\udfff": 1},
        b"bytes",
        {1, 2},
        1j,
        object(),
        Point,
        nested(129),
        nested(254),
        nested(255),
        nested(5000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_encoded_is_a_value_error_that_says_why(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^not JSON: \w+"):
        codec.encode({"args": value})


def test_a_cycle_cannot_be_encoded() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="not JSON"):
        codec.encode(cycle)


def test_as_deep_as_allowed_goes_both_ways() -> None:
    value = nested(codec.MAX_DEPTH)
    assert codec.decode(codec.encode({"a": nested(127)})) == {"a": nested(127)}
    assert codec.encode(value)
    assert codec.encode(["[" * 1000, '"' + "{" * 1000, "\\" * 3 + "[" * 1000])


@given(st.text('[]{}"\\a', max_size=200), st.integers(100, 128))
@example("[\\", 128)
@example('\\"[', 128)
@example('"[', 128)
def test_brackets_in_strings_are_not_depth(text: str, levels: int) -> None:
    value = {"a": [text, nested(levels - 2), {text: []}]} if levels > 3 else {}
    assert codec.decode(codec.encode(value)) == value
    with pytest.raises(ValueError, match="deeper than 128"):
        codec.encode({"a": [text, nested(127), {text: []}]})


# ---- hostile payloads, in time and space

HOSTILE: dict[str, Callable[[int], bytes]] = {
    "deep": lambda size: b'{"a":' + b"[" * (size // 2) + b"]" * (size // 2) + b"}",
    "deep, never closed": lambda size: b'{"a":' + b"[" * size,
    "as deep as allowed, often": lambda size: b'{"a":[' + b",".join([b"[" * 126 + b"]" * 126] * (size // 253)) + b"]}",
    "empty arrays": lambda size: b'{"a":[' + b",".join([b"[]"] * (size // 3)) + b"]}",
    "empty objects, spaced": lambda size: b'{"a": [' + b", ".join([b"{}"] * (size // 4)) + b"]}",
    "many keys": lambda size: b"{" + b",".join(b'"%d":1' % key for key in range(size // 11)) + b"}",
    "many keys, spaced": lambda size: b"{" + b", ".join(b'"%d": 1' % key for key in range(size // 12)) + b"}",
    "many keys, the last twice": lambda size: b'{"a":0,' + b'"k":0,' * 2 + b'"b":1,' * (size // 6) + b'"a":1}',
    "many keys, all else once": lambda size: (
        b"{" + b",".join(b'"%d":1' % key for key in range(size // 11)) + b',"%d":1}' % (size // 11 - 1)
    ),
    "objects with a key twice": lambda size: b'{"a":[' + b",".join([b'{"a":1,"a":2}'] * (size // 14)) + b"]}",
    "one long key": lambda size: b'{"' + b"k" * size + b'": 1}',
    "a string of brackets": lambda size: b'{"a": "' + b"[{" * (size // 2) + b'"}',
    "a string of backslashes": lambda size: b'{"a": "' + b"[\\\\" * (size // 3) + b'"}',
    "a string of escaped quotes": lambda size: b'{"a": "' + b'[\\"' * (size // 3) + b'"}',
    "a string of escaped quotes, never closed": lambda size: b'{"a": "' + b'[\\"' * (size // 3),
    "a string never closed": lambda size: b'{"a": "' + b"[" * size,
    "strings never closed in turn": lambda size: b'{"a": [' + b'"[\\"",' * (size // 6),
    "many strings": lambda size: b'{"a":[' + b", ".join([b'"["'] * (size // 5)) + b"]}",
    "escaped characters": lambda size: b'{"a":"' + b"\\u0041" * (size // 6) + b'"}',
    "small integers": lambda size: b'{"a": [' + b",".join([b"1"] * (size // 2)) + b"]}",
    "long integers": lambda size: b'{"a":[' + b",".join([b"1234567890123456789"] * (size // 20)) + b"]}",
    "one integer of many digits": lambda size: b'{"a":' + b"1" * size + b"}",
    "one fraction of many digits": lambda size: b'{"a":0.' + b"1" * size + b"}",
    "spaces": lambda size: b"{" + b" " * size + b"}",
    "bytes that are no UTF-8, at the end": lambda size: b'{"a":"' + b"x" * size + b"\xff",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_payload_takes_less_than_a_second_of_cpu_per_mib(name: str) -> None:
    soak = settings.default.max_examples > 1000
    size = 16 * MIB if soak else MIB // 4
    payload = HOSTILE[name](size)

    def cost(read: Callable[[bytes], Any]) -> float:
        started = time.process_time()
        with suppress(FrameError):
            read(payload)
        return time.process_time() - started

    # The least of three: in a large process one of them may pay for a whole garbage collection.
    for read in (codec.decode, codec.survey):
        assert min(cost(read) for _ in range(3)) < size / MIB


@pytest.mark.parametrize("name", ["a string of brackets", "a string of backslashes", "a string of escaped quotes"])
def test_one_long_string_costs_a_few_copies_of_itself(name: str) -> None:
    payload = HOSTILE[name](MIB)
    tracemalloc.start()
    try:
        refusal(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * len(payload)  # orjson itself takes 12 to 16


def test_every_kind_of_error_has_a_vector() -> None:
    kinds = {
        case.values[0]["error"]
        for file in ("frames", "payloads")
        for case in cases(f"{file}.json")
        if case.values[0].get("error")
    }
    assert kinds == set(FrameKind)
