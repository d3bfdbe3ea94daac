"""What a bridge says of its commands: written from signatures, read from whatever comes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from bridge_protocol.description import MOST_COMMANDS, Argument, Description, read_descriptions
from bridge_sdk import Bridge
from bridge_sdk.description import descriptions, type_text
from examples.invoices.__main__ import bridge as invoices
from quaybridge.descriptions import as_json


class Colour(Enum):
    RED = "red"
    BLUE = 2


@dataclass
class Point:
    x: float
    colour: Colour = Colour.RED


class Size(BaseModel):
    width: Annotated[int, Field(ge=1)]
    unit: str | None = Field(default=None, alias="in")


class Opaque:
    pass


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (None, "None"),
        (str | None, "str | None"),
        (Optional[bytes], "bytes | None"),  # noqa: UP045  (the old spelling is what this case is about)
        (list[dict[str, int]], "list[dict[str, int]]"),
        (tuple[int, ...], "tuple[int, …]"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Annotated[int, Field(ge=1)], "int"),
        (Any, "Any"),
        (Iterator[bytes], "Iterator[bytes]"),
        (Colour, "Colour('red' | 2)"),
        (Point, "Point(x: float, colour?: Colour)"),
        (list[Size], "list[Size(width: int, in?: str | None)]"),
        (Opaque, "Opaque"),
        ("Unresolvable", "Unresolvable"),
    ],
)
def test_a_type_is_written_as_a_person_would(annotation: Any, text: str) -> None:
    assert type_text(annotation) == text


def made() -> Bridge:
    bridge = Bridge()

    @bridge.command
    def shout(text: str, times: int = 1, colour: Colour = Colour.RED, mark: object = Opaque) -> str:
        """Says it loudly.

        At length.
        """
        return text.upper() * times

    @bridge.command
    async def words(text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word

    @bridge.command("any thing")
    def anything(**args: Any):  # type: ignore[no-untyped-def]
        return args

    return bridge


def said(bridge: Bridge, room: int = 10**9) -> dict[str, Description]:
    """What is read of what it writes."""
    result = json.loads(json.dumps({"capabilities": {"descriptions": described(bridge, room)}}))
    return {each.name: each for each in read_descriptions(result)}


def described(bridge: Bridge, room: int = 10**9) -> list[dict[str, Any]]:
    return json.loads(json.dumps(descriptions(bridge.commands(), room), default=lambda member: member.value))  # type: ignore[no-any-return]


def test_commands_are_described_by_their_signatures() -> None:
    found = said(made())
    assert found["shout"] == Description(
        name="shout",
        doc="Says it loudly.\n\nAt length.",
        arguments=(
            Argument(name="text", type="str", required=True),
            Argument(name="times", type="int", default=1),
            Argument(name="colour", type="Colour('red' | 2)", default="red"),
            Argument(name="mark", type="object"),
        ),
        result="str",
    )
    text = Argument(name="text", type="str", required=True)
    assert found["words"] == Description(name="words", arguments=(text,), result="str", streams=True)
    assert found["any thing"] == Description(name="any thing", more=True)


def test_an_api_is_described_by_itself() -> None:
    found = said(invoices)
    assert set(found) == {"total", "render", "reminders"}
    assert found["reminders"].result == "date"
    assert found["reminders"].streams
    assert found["total"].doc == "What there is to pay, `days` after it was sent."
    assert [argument.name for argument in found["total"].arguments] == ["lines", "sent", "days", "currency"]
    assert found["total"].arguments[0].type == "list[Line(text: str, price: Decimal, count?: int)]"


class Conversation:
    def say(self, text: str) -> str:
        """Says it."""
        return text


def test_a_sessions_class_is_described_too() -> None:
    found = said(Bridge(session_class=Conversation))
    assert found["say"].doc == "Says it."
    assert [argument.name for argument in found["say"].arguments] == ["text"]


def test_what_has_no_room_is_left_out() -> None:
    """A handshake that is over the limit of a frame would be a bridge that never starts."""
    whole = described(made())
    size = len(json.dumps(whole, separators=(",", ":")))
    assert described(made(), size) == whole
    assert said(made(), size - 1)["shout"].doc == "Says it loudly."
    assert described(made(), 256) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "doc", "args", "type", "required", "default", "more", "result", "streams"]), inner
        )
    ),
    max_leaves=20,
)


@given(JSON, JSON)
def test_whatever_comes_is_read_and_can_be_shown(said: Any, commands: Any) -> None:
    found = read_descriptions({"capabilities": {"descriptions": said, "commands": commands}})
    assert all(isinstance(each, Description) for each in found)
    json.dumps(as_json("work", found))


def test_names_alone_are_something_too_and_there_is_a_bound() -> None:
    assert read_descriptions({"capabilities": {"commands": ["b", "a", 7]}}) == (
        Description(name="a"),
        Description(name="b"),
    )
    for nothing in (None, [], {}, {"capabilities": []}, {"echo": {"capabilities": {"commands": ["a"]}}}):
        assert read_descriptions(nothing) == ()
    many = [{"name": f"{number}"} for number in range(2 * MOST_COMMANDS)]
    assert len(read_descriptions({"capabilities": {"descriptions": many}})) == MOST_COMMANDS
