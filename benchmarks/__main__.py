"""Measures quaybridge and its peers, on the same work, in turn, on this machine: `make bench`.

    python -m benchmarks                          # everything; writes benchmarks/results and docs/performance.md
    python -m benchmarks --only a,b --rounds 3 --quick
    python -m benchmarks --guard                  # for a build server: fails below 2 × aio-pika's RPC

Starts the RabbitMQ it needs: a container of each image in RABBITMQ_IMAGES (or RABBITMQ_IMAGE), else a private node.
Exits with 1 for a run that is void, or a guard that fails, and with 2 where there is nothing to measure on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from benchmarks import works
from benchmarks.chart import chart
from benchmarks.rabbitmqs import Bench, bench, names
from benchmarks.report import markdown, show
from benchmarks.results import Run, as_json, run_of
from benchmarks.systems import AIO_PIKA, QUAYBRIDGE
from benchmarks.works import QUICK, WORKS, Finding, Scale, Work

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- written by make bench -->", "<!-- until here -->"
ROUNDS = 5
QUICK_ROUNDS = 3
GUARD_ROUNDS = 3
GUARD_SCALE = Scale(seconds=1.5, warm=1.5)
GUARD_RATIO = 2.0

console = Console(stderr=True)


def main() -> int:
    """Parse, measure, write, print."""
    options = _options()
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, _interrupted)
    found = options.rabbitmq or names(os.environ)
    if not found:
        console.print("nothing to measure on: `make rabbitmq` gets a RabbitMQ")
        return 2
    if options.guard:
        return _guard(found[0])
    scale = QUICK if options.quick else Scale()
    if options.full:
        scale = replace(scale, depths=works.FULL_DEPTHS)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    runs = [_run(name, options.only, scale, rounds) for name in found]
    results = as_json(runs, rounds=rounds, scale="quick" if options.quick else "full" if options.full else "default")
    _write(Path(options.output), results, runs)
    show(runs, Console())
    return 1 if any(run.void for run in runs) else 0


def _run(name: str, only: Sequence[str], scale: Scale, rounds: int) -> Run:
    load = os.getloadavg()[0]
    with bench(name) as place:
        return run_of(place.version, load, _wanted(_rounds(place, _works(only), scale, rounds), only))


def _works(only: Sequence[str]) -> list[Work]:
    return list(dict.fromkeys(WORKS[letter] for letter in sorted(only)))


def _wanted(findings: Iterator[Finding], only: Sequence[str]) -> Iterator[Finding]:
    return (finding for finding in findings if finding.work in only)


def _rounds(place: Bench, todo: Sequence[Work], scale: Scale, rounds: int) -> Iterator[Finding]:
    for number in range(rounds):
        for work in todo:
            began = time.monotonic()
            yield from work(place, scale, bool(number % 2))
            console.print(
                f"{place.version}: round {number + 1} of {rounds}: {work.__name__}, {time.monotonic() - began:.0f} s"
            )


def _write(directory: Path, results: dict[str, object], runs: Sequence[Run]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "latest.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if directory == RESULTS:
        _refresh(PAGE, markdown(results, runs))
    if any(row.work == "a" for run in runs for row in run.rows):
        (directory / "chart.svg").write_text(chart(runs))
    console.print(f"written: {directory}/latest.json and chart.svg, and the tables of {PAGE.name}")


def _refresh(page: Path, tables: str) -> None:
    """Put `tables` in their place in the page."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    page.write_text(f"{before}{begin}\n\n{tables}\n{end}{after}")


def _guard(name: str) -> int:
    """Compare with aio-pika's RPC, in up to three rounds: the first that is good enough ends it."""
    findings: list[Finding] = []
    best = 0.0
    with bench(name) as place:
        for number in range(GUARD_ROUNDS):
            found = list(works.guard(place, GUARD_SCALE, bool(number % 2)))
            findings += found
            rates = {finding.subject: finding.value for finding in found if finding.unit == "/s"}
            best = max(best, rates[QUAYBRIDGE.title] / rates[AIO_PIKA.title])
            if best >= GUARD_RATIO:
                break
        show([run_of(place.version, os.getloadavg()[0], findings)], Console())
    verdict = "passed" if best >= GUARD_RATIO else "FAILED"
    print(f"guard {verdict}: quaybridge did {best:.2f} × aio-pika's RPC, at least {GUARD_RATIO:g} × is wanted")
    return 0 if best >= GUARD_RATIO else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", metavar="a,b,…", type=_letters, default=tuple(WORKS), help=f"of the works {', '.join(sorted(WORKS))}"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default: {ROUNDS}; {QUICK_ROUNDS} with --quick")
    parser.add_argument("--quick", action="store_true", help="shorter: to see whether it runs, not for figures")
    parser.add_argument("--full", action="store_true", help="(g) with 1,000,000 waiting requests too")
    parser.add_argument("--guard", action="store_true", help="only compare with aio-pika's RPC; fail below 2 ×")
    parser.add_argument("--rabbitmq", action="append", metavar="IMAGE", help="an image, or rabbitmq-server; repeatable")
    parser.add_argument("--output", default=str(RESULTS), metavar="DIRECTORY", help="default: benchmarks/results")
    return parser.parse_args()


def _letters(text: str) -> tuple[str, ...]:
    letters = tuple(letter.strip() for letter in text.split(","))
    if unknown := [letter for letter in letters if letter not in WORKS]:
        raise argparse.ArgumentTypeError(f"there is no work {unknown[0]!r}; there are {', '.join(sorted(WORKS))}")
    return letters


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
