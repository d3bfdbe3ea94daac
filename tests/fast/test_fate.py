"""What a failure leads to: the table of failures, held against every code."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_protocol.errors import Code
from bridge_protocol.topology import MAX_DELAY
from worker_node.core.fate import Ended, Fate, Fault, HandBack, Retry, RetryPolicy, decide

DELAYS = {Code.BRIDGE_CRASHED: 1.0, Code.PROTOCOL_VIOLATION: 1.0, Code.BRIDGE_TIMEOUT: 0.0, Code.APPLICATION_ERROR: 1.0}
POLICY = RetryPolicy(max_attempts=3, first_delay=DELAYS, factor=5, max_delay=600)


def fate(
    code: Code,
    *,
    attempt: int = 1,
    policy: RetryPolicy = POLICY,
    remaining: float = math.inf,
    addressed: bool = True,
    jitter: float = 1.0,
    retryable: bool = False,
    retry_after: float | None = None,
) -> Fate:
    fault = Fault(code=code, message="as told", retryable=retryable, retry_after=retry_after)
    return decide(fault, attempt=attempt, policy=policy, remaining=remaining, addressed=addressed, jitter=jitter)


FAILURE, DEAD_LETTER = Ended(dead_letter=False), Ended(dead_letter=True)
# By code: what follows while tries are left, and what follows when none is.
TABLE: dict[Code, tuple[Fate, Fate]] = {
    Code.BAD_REQUEST: (DEAD_LETTER, DEAD_LETTER),
    Code.TOO_LARGE: (DEAD_LETTER, DEAD_LETTER),
    Code.DEADLINE_EXCEEDED: (FAILURE, FAILURE),
    Code.CANCELLED: (FAILURE, FAILURE),
    Code.APPLICATION_ERROR: (FAILURE, FAILURE),
    Code.BRIDGE_CRASHED: (Retry(1, 2), DEAD_LETTER),
    Code.BRIDGE_TIMEOUT: (DEAD_LETTER, DEAD_LETTER),
    Code.PROTOCOL_VIOLATION: (Retry(1, 2), DEAD_LETTER),
    Code.BRIDGE_UNAVAILABLE: (HandBack(), HandBack()),
    Code.SESSION_LOST: (FAILURE, FAILURE),
    Code.READER_STALLED: (FAILURE, FAILURE),
}
AT_THE_PRODUCER = {
    Code.UNKNOWN_SERVICE,
    Code.REFUSED,
    Code.BLOCKED,
    Code.BROKER_UNAVAILABLE,
    Code.OUTCOME_UNKNOWN,
}


def test_the_table_knows_every_code_a_node_can_meet() -> None:
    assert set(TABLE) | AT_THE_PRODUCER == set(Code)


@pytest.mark.parametrize("code", TABLE)
def test_each_code_leads_where_the_table_says(code: Code) -> None:
    first, last = TABLE[code]
    assert fate(code) == first
    assert fate(code, attempt=POLICY.max_attempts) == last


def test_a_run_timeout_is_tried_again_where_that_is_wanted() -> None:
    eager = replace(POLICY, first_delay={**DELAYS, Code.BRIDGE_TIMEOUT: 30.0})
    assert fate(Code.BRIDGE_TIMEOUT, policy=eager) == Retry(30, 2)
    assert fate(Code.BRIDGE_CRASHED, policy=eager) == Retry(1, 2)
    assert fate(Code.BRIDGE_TIMEOUT, policy=eager, attempt=3) == DEAD_LETTER


def test_a_timeout_that_was_not_the_requests_doing_is_tried_again_in_any_case() -> None:
    assert fate(Code.BRIDGE_TIMEOUT, retryable=True) == Retry(1, 2)
    assert fate(Code.BRIDGE_TIMEOUT, retryable=True, attempt=3) == DEAD_LETTER


def test_a_failure_whose_first_delay_is_0_is_not_tried_again_whatever_the_bridge_says() -> None:
    never = replace(POLICY, first_delay=dict.fromkeys(DELAYS, 0.0))
    assert fate(Code.BRIDGE_CRASHED, policy=never) == DEAD_LETTER
    assert fate(Code.APPLICATION_ERROR, policy=never, retryable=True, retry_after=1.0) == FAILURE


def test_an_application_error_is_tried_again_only_if_the_bridge_says_so() -> None:
    assert fate(Code.APPLICATION_ERROR, retryable=True) == Retry(1, 2)
    assert fate(Code.APPLICATION_ERROR, retryable=True, attempt=3) == FAILURE
    assert fate(Code.APPLICATION_ERROR, retry_after=2.0) == FAILURE


def test_each_further_try_waits_longer_up_to_the_limit() -> None:
    patient = replace(POLICY, max_attempts=99)
    delays = [fate(Code.BRIDGE_CRASHED, attempt=attempt, policy=patient) for attempt in range(1, 8)]
    assert delays == [Retry(d, n + 2) for n, d in enumerate([1, 5, 25, 125, 600, 600, 600])]


def test_the_delay_a_bridge_asks_for_is_kept_and_never_cut_short() -> None:
    def delay(seconds: float) -> Fate:
        return fate(Code.APPLICATION_ERROR, retryable=True, retry_after=seconds, jitter=0.0)

    assert delay(0) == Retry(1, 2)
    assert delay(1.1) == Retry(2, 2)
    assert delay(90) == Retry(90, 2)
    assert delay(1e300) == Retry(MAX_DELAY, 2)


def test_a_try_that_could_not_start_before_the_deadline_is_not_scheduled() -> None:
    assert fate(Code.BRIDGE_CRASHED, attempt=2, remaining=5.1) == Retry(5, 3)
    assert fate(Code.BRIDGE_CRASHED, attempt=2, remaining=5.0) == DEAD_LETTER
    assert fate(Code.BRIDGE_CRASHED, attempt=2, remaining=-1.0) == DEAD_LETTER
    assert fate(Code.APPLICATION_ERROR, retryable=True, retry_after=60, remaining=30) == FAILURE


@pytest.mark.parametrize("code", sorted(set(TABLE) - {Code.CANCELLED, Code.BRIDGE_UNAVAILABLE}))
def test_a_failure_that_has_nowhere_to_go_is_kept(code: Code) -> None:
    assert fate(code, attempt=3, addressed=False) == DEAD_LETTER


def test_a_cancelled_request_that_nobody_waits_for_is_simply_over() -> None:
    assert fate(Code.CANCELLED, addressed=False) == FAILURE


def test_one_attempt_means_no_retry() -> None:
    assert fate(Code.BRIDGE_CRASHED, policy=replace(POLICY, max_attempts=1)) == DEAD_LETTER


@given(
    attempt=st.integers(1, 100),
    jitter=st.floats(0, 1),
    first=st.floats(0.001, 86_400),
    factor=st.floats(1, 100),
    longest=st.floats(0.001, 86_400),
    asked=st.none() | st.floats(0, 1e308),
)
def test_a_delay_is_whole_seconds_that_the_delay_queues_can_do_and_in_the_upper_half_of_what_is_configured(
    attempt: int, jitter: float, first: float, factor: float, longest: float, asked: float | None
) -> None:
    delays = {Code.APPLICATION_ERROR: first}
    policy = RetryPolicy(max_attempts=101, first_delay=delays, factor=factor, max_delay=longest)
    decided = fate(
        Code.APPLICATION_ERROR, retryable=True, retry_after=asked, attempt=attempt, policy=policy, jitter=jitter
    )
    assert isinstance(decided, Retry)
    assert decided.attempt == attempt + 1
    assert isinstance(decided.delay, int)
    assert 1 <= decided.delay <= MAX_DELAY
    if asked is not None:
        assert decided.delay >= min(asked, MAX_DELAY)
    else:
        full = min(first * factor ** (attempt - 1), longest)
        assert full / 2 - 0.5 <= decided.delay <= max(1, full + 0.5)
