"""Keys are hidden in every spelling, and nothing else is."""

from __future__ import annotations

import io
import json
import random
from urllib.parse import quote

import pytest

from examples.dspy.keys import HIDDEN, DiscreetStream, DiscreetText, Keys

KEY = 'sk-"Ä/+9876543210'


def keys_with(key: str = KEY) -> Keys:
    keys = Keys()
    keys.add(key)
    return keys


@pytest.mark.parametrize("spell", [str, json.dumps, repr, quote, lambda key: quote(key, safe="")])
def test_a_key_is_hidden_however_it_is_spelt(spell: object) -> None:
    assert callable(spell)
    said = keys_with().hide(f"refused: {spell(KEY)}, twice: {KEY}")
    assert "9876543210" not in said
    assert said.count(HIDDEN) == 2


def test_in_values_of_every_kind() -> None:
    value = {"a": [KEY, 1, None, {KEY: True}], "b": (f"<{KEY}>",)}
    assert keys_with().hide_in(value) == {"a": [HIDDEN, 1, None, {HIDDEN: True}], "b": [f"<{HIDDEN}>"]}


@pytest.mark.parametrize("placeholder", ["", "x", "none", "EMPTY"])
def test_what_stands_for_no_key_is_left_alone(placeholder: str) -> None:
    assert keys_with(placeholder).hide("none is EMPTY, x") == "none is EMPTY, x"


def test_variables_that_are_named_like_secrets() -> None:
    keys = Keys()
    keys.add_from(
        {
            "OPENAI_API_KEY": "secret-one",
            "AWS_SECRET_ACCESS_KEY": "secret-two",
            "HF_TOKEN": "secret-three",
            "TOKENIZERS_PARALLELISM": "parallel-yes",
            "HOME": "/home/someone",
        }
    )
    said = keys.hide("secret-one secret-two secret-three parallel-yes /home/someone")
    assert said == f"{HIDDEN} {HIDDEN} {HIDDEN} parallel-yes /home/someone"


def test_a_stream_passes_whole_lines_on() -> None:
    sink = io.StringIO()
    stream = DiscreetStream(sink, keys_with())
    stream.write("one " + KEY[:5])
    assert sink.getvalue() == ""
    stream.write(KEY[5:] + "\ntwo\n\nthree")
    assert sink.getvalue() == f"one {HIDDEN}\ntwo\n\n"


def test_a_text_in_pieces_holds_back_what_could_be_a_key_and_no_more() -> None:
    text = DiscreetText(keys_with("secret-one"))
    assert text.add("a s") == "a "
    assert text.add("ecret-") == ""
    assert text.add("two, secret-") == "secret-two, "
    assert text.add("one.") == f"{HIDDEN}."
    assert text.add("secre") == ""
    assert text.end() == "secre"
    assert text.end() == ""


def test_a_text_in_pieces_is_hidden_as_in_one() -> None:
    """Also keys that overlap themselves and each other, however they are parted."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(3000):
        keys = Keys()
        for _ in range(chance.randint(1, 3)):
            keys.add("".join(chance.choices("ab", k=chance.randint(8, 11))))
        whole = "".join(chance.choices("ab", k=chance.randint(0, 60)))
        text = DiscreetText(keys)
        seen, rest = "", whole
        while rest:
            size = chance.randint(1, 9)
            seen, rest = seen + text.add(rest[:size]), rest[size:]
        assert seen + text.end() == keys.hide(whole)
