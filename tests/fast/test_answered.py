"""What was answered just now: found again by what it was, and forgotten in time."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from worker_node.core.answered import Answered

FIRST = ("m1", 1, 0)


def answered(*, count: int = 100, bytes: int = 10_000, age: float = 60.0) -> Answered:
    made = Answered()
    made.bound(count=count, bytes=bytes, age=age)
    return made


def test_a_request_that_comes_again_gets_the_answer_it_got() -> None:
    kept = answered()
    kept.keep(FIRST, b"question", b"answer", now=0.0)
    assert kept.find(FIRST, b"question", now=1.0) == b"answer"
    assert kept.find(FIRST, b"question", now=2.0) == b"answer"


def test_nobody_gets_the_answer_of_another() -> None:
    kept = answered()
    kept.keep(FIRST, b"question", b"answer", now=0.0)
    assert kept.find(FIRST, b"another question", now=1.0) is None
    assert kept.find(("m1", 2, 0), b"question", now=1.0) is None
    assert kept.find(("m1", 1, 1), b"question", now=1.0) is None
    assert kept.find(("m2", 1, 0), b"question", now=1.0) is None


def test_a_name_that_is_used_again_is_its_latest_request() -> None:
    kept = answered()
    kept.keep(FIRST, b"question", b"answer", now=0.0)
    kept.keep(FIRST, b"another question", b"another answer", now=1.0)
    assert kept.find(FIRST, b"question", now=2.0) is None
    assert kept.find(FIRST, b"another question", now=2.0) == b"another answer"
    assert len(kept) == 1


def test_an_answer_is_forgotten_when_it_is_old() -> None:
    kept = answered(age=60.0)
    kept.keep(FIRST, b"question", b"answer", now=0.0)
    assert kept.find(FIRST, b"question", now=59.9) == b"answer"
    assert kept.find(FIRST, b"question", now=60.0) is None
    kept.keep(("m2", 1, 0), b"another question", b"another answer", now=60.0)
    assert len(kept) == 1


def test_nothing_is_kept_where_nothing_is_wanted() -> None:
    for kept in (answered(count=0), answered(bytes=0)):
        kept.keep(FIRST, b"question", b"answer", now=0.0)
        assert len(kept) == 0


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40), st.integers(0, 40)), max_size=40),
    st.integers(0, 5),
    st.integers(0, 100),
)
def test_the_latest_are_kept_within_the_bounds(made: list[tuple[str, int, int]], count: int, most: int) -> None:
    kept = answered(count=count, bytes=most)
    model: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()
    for name, asked, told in made:
        request, payload = b"q" * asked, b"a" * told
        kept.keep((name, 1, 0), request, payload, now=0.0)
        model.pop(name, None)
        model[name] = (request, payload)
        while len(model) > count or sum(len(q) + len(a) for q, a in model.values()) > most:
            model.popitem(last=False)
    assert len(kept) == len(model)
    for name, (request, payload) in model.items():
        assert kept.find((name, 1, 0), request, now=1.0) == payload
