"""A process as the kernel tells of it."""

from __future__ import annotations

import os

from worker_node.process_status import peak_resident, resident


def test_the_size_of_a_process_and_its_peak_are_told_in_bytes() -> None:
    now, peak = resident(os.getpid()), peak_resident(os.getpid())
    assert now is not None
    assert peak is not None
    assert 1_000_000 < now <= peak + 1_000_000  # the kernel's counts lag by some pages a thread


def test_of_a_process_that_is_gone_nothing_is_told() -> None:
    assert resident(2**31 - 1) is None
    assert peak_resident(2**31 - 1) is None
