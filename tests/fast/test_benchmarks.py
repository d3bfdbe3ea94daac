"""What the benchmarks make of their figures: medians, goals, a void run, tables and the chart."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import BEGIN, END, PAGE, _refresh
from benchmarks.chart import chart
from benchmarks.goals import goals
from benchmarks.report import markdown
from benchmarks.results import Run, run_of
from benchmarks.systems import AIO_PIKA, CELERY, LIMIT, QUAYBRIDGE
from benchmarks.works import Finding


def run(**rates: tuple[float, ...]) -> Run:
    """Rounds in which these systems made so many round trips a second."""
    titles = {"limit": LIMIT.title, "ours": QUAYBRIDGE.title, "aio_pika": AIO_PIKA.title, "celery": CELERY.title}
    findings = [
        Finding(work="a", subject=titles[name], quantity="round trips", unit="/s", value=value)
        for name, values in rates.items()
        for value in values
    ]
    return run_of("RabbitMQ 4.3.6", 0.1, findings)


def test_the_median_of_the_rounds_counts() -> None:
    found = run(ours=(1000, 5000, 4000))
    assert found.median("a", QUAYBRIDGE.title, "round trips") == 4000
    assert found.median("a", CELERY.title, "round trips") is None


@pytest.mark.parametrize(("limit", "void"), [(3000, False), (2999, True)])
def test_a_run_whose_limit_is_too_slow_is_void_and_says_so(limit: float, void: bool) -> None:
    found = run(limit=(limit,), aio_pika=(1000,), ours=(2000,))
    assert (found.void is not None) == void
    assert ("void: the limit is" in chart([found])) == void


def test_goals_are_ratios_of_one_run_and_only_of_what_was_measured() -> None:
    found = run(limit=(6000,), ours=(4200,), aio_pika=(2000,))
    reached = {goal.text: (goal.reached(found), goal) for goal in goals()}
    assert {text: figure for text, (figure, _) in reached.items() if figure is not None} == {
        "round trips, of aio-pika RPC's": 2.1,
        "round trips, of the limit's": 0.7,
    }
    assert reached["round trips, of the limit's"][1].met(0.7)
    assert not reached["round trips, of aio-pika RPC's"][1].met(2.1)


def test_less_is_better_where_a_goal_says_so() -> None:
    (lone,) = (goal for goal in goals() if goal.work == "b")
    assert lone.met(1.15)
    assert not lone.met(1.16)


def test_the_chart_is_an_image_that_names_every_system() -> None:
    drawn = ElementTree.fromstring(chart([run(limit=(6000, 7000), ours=(4000, 4200), celery=(300, 310))]))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    said = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {LIMIT.title, QUAYBRIDGE.title, CELERY.title, "6,500", "4,100", "305"} <= set(said)


def test_a_chart_of_nothing_says_so() -> None:
    drawn = ElementTree.fromstring(chart([run(ours=())]))
    (text,) = drawn.iter("{http://www.w3.org/2000/svg}text")
    assert text.text == "Not measured yet: make bench"


def test_the_tables_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    results = {"when": "now", "machine": dict.fromkeys(("processors", "memory", "system", "python"), "one")}
    tables = markdown({**results, "rounds": 3, "versions": {"pika": "1"}}, [run(ours=(4000,), celery=(250,))])
    _refresh(page, tables)
    _refresh(page, tables)
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith(f"{END}\nafter\n")
    assert written.count("| (a) round trips, of Celery's | ≥ 15 × | 16.0 × | reached |") == 1
    assert "old" not in written


def test_the_page_has_the_place_for_them() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    assert before
    assert END in rest
