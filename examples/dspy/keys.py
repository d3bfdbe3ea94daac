"""Keys: what must never be seen, and how it is kept out of everything that is written or sent."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO
from urllib.parse import quote

HIDDEN = "[redacted]"
SHORTEST = 8  # characters; what is shorter is no key, but what a server that needs none is given: "none", "x"
_SECRET = re.compile(r"(?:^|_)(?:API_?KEY|ACCESS_?KEY|SECRET|TOKEN|PASSWORD|CREDENTIALS?)(?:_|$)", re.IGNORECASE)


class Keys:
    """The keys this process was told. Whatever is `hide`n holds none of them, in none of the usual spellings."""

    def __init__(self) -> None:
        self._spellings: set[str] = set()

    def __repr__(self) -> str:
        return f"<Keys {len(self._spellings)} spellings>"

    def add(self, key: str) -> None:
        """Hide `key` from now on, if it can be one."""
        if len(key) >= SHORTEST:
            # As it is, in JSON or a repr, and in a URL, where some providers want it.
            self._spellings |= {key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key), quote(key, safe="")}

    def add_from(self, environ: Mapping[str, str]) -> None:
        """Hide the values of all variables that are named like secrets."""
        for name, value in environ.items():
            if _SECRET.search(name):
                self.add(value)

    def hide(self, text: str) -> str:
        """`text` with every key left out."""
        for spelling in sorted(self._spellings, key=len, reverse=True):
            text = text.replace(spelling, HIDDEN)
        return text

    def cut(self, text: str) -> int:
        """Where `text`, whose end is yet to come, can be parted: no key begins before that and ends after it."""
        longest = max(map(len, self._spellings), default=0)
        for place in range(max(0, len(text) - longest + 1), len(text)):
            if any(
                len(spelling) > len(text) - place and spelling.startswith(text[place:]) for spelling in self._spellings
            ):
                return self._before(text, place)
        return len(text)

    def hide_in(self, value: Any) -> Any:
        """The same for all text in a JSON value."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            return {self.hide(str(name)): self.hide_in(below) for name, below in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide_in(item) for item in value]
        return value

    def _before(self, text: str, place: int) -> int:
        """`place`, or where the key begins that it is in: one can end as it begins."""
        while begins := [
            begin
            for spelling in self._spellings
            if (begin := text.find(spelling, max(0, place - len(spelling) + 1))) != -1 and begin < place
        ]:
            place = min(begins)
        return place


class DiscreetText:
    """A text that comes in pieces. What could be the beginning of a key is held back until it is known to be none."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._held = ""

    def add(self, piece: str) -> str:
        """What may be seen now."""
        text = self._held + piece
        place = self._keys.cut(text)
        self._held = text[place:]
        return self._keys.hide(text[:place])

    def end(self) -> str:
        """What was held back: no more comes."""
        held, self._held = self._held, ""
        return self._keys.hide(held)


class DiscreetStream:
    """A text stream that passes whole lines on to `stream`, without keys: one may come in two writes."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, stream: TextIO, keys: Keys) -> None:
        self._stream = stream
        self._keys = keys
        self._line = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            whole, end, self._line = (self._line + text).rpartition("\n")
            if end:
                self._stream.write(self._keys.hide(whole) + "\n")
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False


def keep_quiet(keys: Keys) -> None:
    """Let nothing that Python code prints or logs show a key. To be called before anything is imported that logs."""
    stream: Any = DiscreetStream(sys.stderr, keys)
    sys.stdout = sys.stderr = stream
