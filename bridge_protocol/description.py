"""What a bridge says of its commands, for people: in `capabilities.descriptions` of its answer to a ping.

    {"name": "thumbnail", "doc": "A small copy.", "args": [{"name": "image", "type": "bytes", "required": true}],
     "more": true, "result": "bytes", "streams": true}

No node looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 64 * 1024  # of JSON, that all of it should have
MOST_COMMANDS = 1024
MOST_ARGUMENTS = 256
LONGEST_TEXT = 4096  # characters of a doc, or a type


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """`type` as its bridge's language has it. `default`: JSON, of one that is not `required`; None: or not said."""

    name: str
    type: str = ""
    required: bool = False
    default: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A command. `more`: it takes arguments of any other name. `result`: a type, of its chunks where it `streams`."""

    name: str
    doc: str = ""
    arguments: tuple[Argument, ...] = ()
    more: bool = False
    result: str = ""
    streams: bool = False


def read_descriptions(result: Any) -> tuple[Description, ...]:
    """What the result of a ping says: each description there is, and the names of commands that have none.

    Whatever is not as it should be is passed over.
    """
    capabilities = result.get("capabilities") if isinstance(result, dict) else None
    if not isinstance(capabilities, dict):
        return ()
    found = {description.name: description for description in _descriptions(capabilities.get("descriptions"))}
    commands = capabilities.get("commands")
    for name in commands[:MOST_COMMANDS] if isinstance(commands, list) else ():
        if isinstance(name, str) and name not in found:
            found[name] = Description(name=name)
    return tuple(found[name] for name in sorted(found))


def _descriptions(said: Any) -> Iterator[Description]:
    for item in said[:MOST_COMMANDS] if isinstance(said, list) else ():
        if isinstance(item, dict) and isinstance(name := item.get("name"), str):
            yield Description(
                name=name[:LONGEST_TEXT],
                doc=_text(item, "doc"),
                arguments=tuple(_arguments(item.get("args"))),
                more=item.get("more") is True,
                result=_text(item, "result"),
                streams=item.get("streams") is True,
            )


def _arguments(said: Any) -> Iterator[Argument]:
    for item in said[:MOST_ARGUMENTS] if isinstance(said, list) else ():
        if isinstance(item, dict) and isinstance(name := item.get("name"), str):
            required = item.get("required") is True
            default = None if required else item.get("default")
            yield Argument(name=name[:LONGEST_TEXT], type=_text(item, "type"), required=required, default=default)


def _text(item: dict[str, Any], key: str) -> str:
    found = item.get(key)
    return found[:LONGEST_TEXT] if isinstance(found, str) else ""
