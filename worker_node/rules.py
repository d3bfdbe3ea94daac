"""What a service's settings mean to the parts that decide."""

from __future__ import annotations

import math

from worker_node.core.fate import RetryPolicy
from worker_node.core.limits import PoolLimits, Wear
from worker_node.core.sessions import SessionLimits
from worker_node.settings import ServiceSettings


def pool_limits(settings: ServiceSettings) -> PoolLimits:
    """The numbers of the service's pool."""
    recycle = settings.recycle
    eager = settings.start == "eager"
    return PoolLimits(
        least=settings.bridges.least,
        most=settings.bridges.most,
        eager=eager,
        start_timeout=settings.start_timeout,
        run_timeout=settings.run_timeout,
        cancel_timeout=settings.stop_timeout,
        stop_timeout=settings.stop_timeout,
        restart_delay=settings.restart_delay,
        max_restart_delay=settings.max_restart_delay,
        grow_after=settings.grow_after,
        shrink_after=settings.shrink_after if settings.bridges.most > settings.bridges.least else math.inf,
        spare=settings.spare,
        # A lazy pool starts a bridge when work waits for it, and at no other time.
        prewarm=settings.prewarm and eager,
        wear=Wear(
            requests=recycle.requests or math.inf,
            age=recycle.age or math.inf,
            idle=recycle.idle or math.inf,
            memory=recycle.memory or math.inf,
            memory_hard=recycle.memory_hard or math.inf,
            jitter=recycle.jitter,
        ),
        breaker_failures=settings.breaker.failures,
        breaker_window=settings.breaker.window,
        session_share=settings.sessions.share,
        session_quiet=settings.sessions.quiet,
        session_patience=settings.sessions.patience,
    )


def session_limits(settings: ServiceSettings) -> SessionLimits:
    """How many sessions there may be, and for how long."""
    sessions = settings.sessions
    return SessionLimits(most=sessions.max, idle=sessions.idle, age=sessions.age)


def retry_policy(settings: ServiceSettings) -> RetryPolicy:
    """When its requests are tried again."""
    return RetryPolicy(
        max_attempts=settings.retry.max_attempts,
        first_delay=settings.retry.first_delays,
        factor=settings.retry.factor,
        max_delay=settings.retry.max_delay,
    )
