"""Chaos with a loss oracle, in its short forms; `make soak` runs the long ones."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import mixture
from chaos.cluster import Cluster
from chaos.plan import CALM, DIRECT, GLIMPSE, LONG, LONG_DIRECT, LONG_DURABLE, SHORT, Plan
from chaos.report import as_table, problems
from chaos.run import Report, run
from container import needs_container
from rich.console import Console
from soak import SOAK

from quaybridge.rabbitmq import DEFAULT_IMAGE

IMAGE = os.environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE
OTHERS = [image for image in os.environ.get("RABBITMQ_IMAGES", "").split() if image != IMAGE]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One RabbitMQ in a container of its own, to be killed."""
    needs_container(IMAGE)
    with Cluster(IMAGE) as started:
        yield started


async def passed(plan: Plan, cluster: Cluster, directory: Path) -> Report:
    """Run it, and hold it to what is promised."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    report = await run(plan, cluster, directory, seed=seed)
    Console().print(as_table(report))
    assert report.passed, "\n".join(problems(report))
    return report


async def test_without_faults_nothing_is_lost_and_nothing_doubled(cluster: Cluster, tmp_path: Path) -> None:
    report = await passed(CALM, cluster, tmp_path)
    assert report.confirmed == CALM.requests
    assert report.verdict is not None
    assert (report.verdict.duplicated, report.dead, report.republished) == (0, 0, 0)


async def test_nothing_confirmed_is_lost_whatever_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    report = await passed(LONG if SOAK else SHORT, cluster, tmp_path)
    assert report.confirmed == report.requests >= report.plan.requests
    assert report.dead  # the poison among them


async def test_direct_replies_are_right_or_said_to_be_unknown(cluster: Cluster, tmp_path: Path) -> None:
    report = await passed(LONG_DIRECT if SOAK else DIRECT, cluster, tmp_path)
    assert report.confirmed + report.unknown == report.requests
    assert report.unknown


@pytest.mark.skipif(not SOAK, reason="a long form: make soak runs it")
async def test_calls_with_durable_replies_are_all_answered(cluster: Cluster, tmp_path: Path) -> None:
    report = await passed(LONG_DURABLE, cluster, tmp_path)
    assert (report.confirmed, report.unknown) == (report.requests, 0)


async def test_sessions_streams_and_claims_are_right_or_told_whatever_is_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    faults = mixture.LONG if SOAK else mixture.SHORT
    books = await mixture.run(cluster, tmp_path, faults, seed=seed, hasty=not SOAK)
    print(*sorted({**books.done, **books.told}.items()), sep="\n")
    assert books.wrong == []
    assert len(books.done) == 6, "each of them was done"
    assert any("SessionLost" in what for what in books.told)


@pytest.mark.parametrize("image", OTHERS, ids=lambda image: image.rpartition(":")[2])
async def test_other_versions_lose_nothing_either(image: str, tmp_path: Path) -> None:
    needs_container(image)
    with Cluster(image) as cluster:
        await passed(SHORT if SOAK else GLIMPSE, cluster, tmp_path)
