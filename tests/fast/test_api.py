"""An Api: which classes can be one, and what passes through its methods, both ways."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field

from bridge_protocol.api import Api, Method, Mismatch
from bridge_protocol.binary import encode_binary, restore
from bridge_protocol.codec import decode


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


@dataclass
class Point:
    x: float
    y: float = 0.0


class Pair(NamedTuple):
    left: int
    right: bytes


class Photo(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    content: bytes
    taken: datetime = Field(alias="takenAt")
    tags: set[str] = set()
    thumbnails: list[bytes] = []


class Everything(Protocol):
    def same(self, value: Any) -> Any: ...

    def photo(self, photo: Photo) -> Photo: ...

    def many(
        self, day: date, colour: Colour, point: Point, pair: Pair, names: dict[Colour, set[bytes]]
    ) -> dict[int, Photo]: ...

    def bounded(self, count: Annotated[int, Field(ge=1, le=9)] = 1, *, mode: Literal["fast", "slow"] = "fast") -> None:
        """Does nothing."""

    def chunks(self, to: int) -> Iterator[bytes]: ...

    def later(self, to: int) -> AsyncIterator[Point]: ...

    async def awaited(self) -> int: ...

    @staticmethod
    def fixed(a: int) -> int:
        return a

    title: str = "no command"

    class Inner:
        """No command either."""

    def _private(self, *args: Any) -> None: ...


API = Api(Everything)
MOMENT = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
PHOTO = Photo(content=b"\xff\x00", takenAt=MOMENT, tags={"a"}, thumbnails=[b"", b"\xfe"])


def over_the_wire(value: Any) -> Any:
    """What comes of it at the other end."""
    payload, key = encode_binary({"": value})
    decoded = decode(payload)
    return (decoded if key is None else restore(decoded, key))[""]


def test_its_public_methods_are_the_commands() -> None:
    assert set(API.methods) == {"same", "photo", "many", "bounded", "chunks", "later", "awaited", "fixed"}
    kinds = {name: (method.streams, method.asynchronous) for name, method in API.methods.items()}
    assert kinds["photo"] == kinds["fixed"] == (False, False)
    assert (kinds["chunks"], kinds["later"], kinds["awaited"]) == ((True, False), (True, True), (False, True))
    assert repr(API).startswith("<Api Everything: awaited, bounded, ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("photo", PHOTO),
        ("same", {"a": [1, 2.5, None, True, "é", b"\xff"]}),
        ("chunks", b"\xff"),
        ("later", Point(1, 2)),
        ("many", {7: PHOTO}),
        ("bounded", None),
        ("awaited", 7),
    ],
)
def test_what_a_method_gives_comes_back(name: str, value: Any) -> None:
    method = API.methods[name]
    assert method.read(over_the_wire(method.write(value))) == value


def test_what_a_method_takes_comes_back() -> None:
    given = {
        "day": date(2026, 1, 31),
        "colour": Colour.RED,
        "point": Point(1.5),
        "pair": Pair(1, b"\x80"),
        "names": {Colour.BLUE: {b"\x81"}},
    }
    method = API.methods["many"]
    sent = method.by_name((given["day"], given["colour"]), {name: given[name] for name in list(given)[2:]})
    assert sent["pair"] == [1, b"\x80"]
    assert method.read_args(over_the_wire(sent)) == given
    photo = API.methods["photo"].by_name((PHOTO,), {})
    assert photo["photo"]["takenAt"] == "2026-01-31T12:00:00Z"
    assert API.methods["photo"].read_args(over_the_wire(photo)) == {"photo": PHOTO}


@pytest.mark.parametrize(
    ("value", "json"),
    [
        (Decimal("1.10"), "1.10"),
        (timedelta(minutes=90), "PT1H30M"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Path("a/b"), "a/b"),
        (Level.LOW, 1),
        ((1, {2}, frozenset({b"3"})), [1, [2], [b"3"]]),
        ({1: Photo(content=b"\xff", takenAt=MOMENT)}, None),
        (bytearray(b"\xff"), b"\xff"),
    ],
)
def test_where_anything_may_come_it_is_what_json_and_bytes_can_say(value: Any, json: Any) -> None:
    written = API.methods["same"].write(value)
    if json is not None:
        assert written == json
    over_the_wire(written)


def test_arguments_that_are_left_out_are_not_sent() -> None:
    bounded = API.methods["bounded"]
    assert bounded.by_name((), {}) == {}
    assert bounded.by_name((3,), {"mode": "slow"}) == {"count": 3, "mode": "slow"}


@pytest.mark.parametrize(
    ("name", "args", "problem"),
    [
        ("bounded", {"count": 10}, "Everything.bounded: count: Input should be less than or equal to 9"),
        ("bounded", {"mode": "medium"}, "Everything.bounded: mode: Input should be 'fast' or 'slow'"),
        ("bounded", {"count": 0, "mod": "fast"}, "mod: there is no such argument; count: Input should be greater than"),
        ("chunks", {}, "Everything.chunks: to: it is missing"),
        ("photo", {"photo": {"content": b"x"}}, "Everything.photo: photo.takenAt: Field required"),
        (
            "photo",
            {"photo": {"content": b"x", "takenAt": MOMENT, "tags": ["a", 1]}, "more": 1},
            "photo: more: there is no such argument; photo.tags.1: Input should be a valid string",
        ),
    ],
)
def test_what_does_not_fit_is_named(name: str, args: dict[str, Any], problem: str) -> None:
    with pytest.raises(Mismatch) as refused:
        API.methods[name].read_args(args)
    assert problem in str(refused.value)


def test_a_value_is_never_quoted() -> None:
    with pytest.raises(Mismatch) as refused:
        API.methods["photo"].read_args({"photo": {"content": b"x", "takenAt": "hunter2", "tags": "hunter2"}})
    assert "hunter2" not in str(refused.value)


def test_what_was_called_wrongly_is_named_as_python_would() -> None:
    for args, kwargs in [((1, 2), {}), ((), {"cuont": 1})]:
        with pytest.raises(Mismatch, match=r"^Everything\.bounded: (too many positional|got an unexpected)"):
            API.methods["bounded"].by_name(args, kwargs)


def test_what_is_given_must_fit_too() -> None:
    for value in ("x", None, []):
        with pytest.raises(Mismatch, match=r"^Everything\.awaited: what it gives: Input should be a valid integer"):
            API.methods["awaited"].read(value)
        with pytest.raises(Mismatch, match="what it gives"):
            API.methods["awaited"].write(value)
    with pytest.raises(Mismatch, match="Unable to serialize unknown type"):
        API.methods["same"].write(object())


def made(**members: Any) -> type:
    return type("Made", (), members)


def positional(self: Any, a: int, /) -> None: ...


def star(self: Any, *a: int) -> None: ...


def unknown(self: Any, a: Unknown) -> None: ...  # type: ignore[name-defined]  # noqa: F821  (what it is about)


def unfit(self: Any, a: Method) -> None: ...


async def gives_an_iterator(self: Any) -> AsyncIterator[int]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (made(), "Made has no public methods"),
        (7, "an Api is a class, typing.Protocol or not, and 7 is none"),
        (made(f=positional), "Made.f: arguments come by name, one by one, so a: 'int' cannot be given"),
        (made(f=star), "Made.f: arguments come by name, one by one, so *a: 'int' cannot be given"),
        (made(f=unknown), "Made.f: its annotations name what is not there at run time: name 'Unknown' is not defined"),
        (made(f=unfit), "Made.f: a: pydantic can make nothing of <class 'bridge_protocol.api.Method'>: Unable to"),
        (made(f=gives_an_iterator), "Made.f gives chunks: write def, and not async def"),
    ],
)
def test_what_cannot_be_one_says_why(kind: Any, problem: str) -> None:
    with pytest.raises(TypeError) as refused:
        Api(kind)
    assert str(refused.value).startswith(problem)
