"""The watchdog of one request queue: whether the broker has forgotten its consumer.

    quiet ──a look finds requests ready, and room for one──▶ suspicious ──the next look finds the same──▶ rebuild
      ▲                                                          │
      └──── a delivery, none ready, no room, a new consumer ─────┘

A consumer can be dead without a word: RabbitMQ 4.3 keeps one that it cancelled for an ack timeout until the client
confirms that (rabbitmq-server #17317). One that has nothing to do, nothing free, or nothing subscribed looks the
same from outside, so silence alone proves nothing. It is for plain queues: on a single-active one a consumer that
stands by is silent while the queue is full, and rightly so.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_PATIENCE = 32  # looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one look finds: a moment's truth about a queue and this node's consumer of it.

    `ready`: requests in the queue that nobody holds. `room`: how many more the consumer may be given; 0 where there
    is no consumer. `deliveries` counts what came by it, and `subscriptions` how often it was made. `receiving`: a
    message is on its way, which may take long on a slow line.
    """

    ready: int
    room: int
    deliveries: int
    subscriptions: int
    receiving: bool


class Watchdog:
    """Told each look in turn, says when the channel must be rebuilt.

    A rebuild that brings no delivery doubles the number of suspicious looks before the next one: what is the matter
    then is not the consumer, and each rebuild costs the requests in flight a second run.
    """

    def __init__(self) -> None:
        self._patience = 1
        self._suspicions = 0
        self._last: Sight | None = None
        self._deliveries = 0

    def __repr__(self) -> str:
        return f"<Watchdog {self._suspicions} of {self._patience} suspicions>"

    def looked(self, sight: Sight | None) -> bool:
        """Whether to rebuild, by this look; None: nothing could be seen."""
        last, self._last = self._last, sight
        if sight is not None and sight.deliveries != self._deliveries:
            self._deliveries = sight.deliveries
            self._patience = 1
        self._suspicions = self._suspicions + 1 if _same_suspicion(last, sight) else 0
        if self._suspicions < self._patience:
            return False
        self._suspicions = 0
        self._patience = min(2 * self._patience, MOST_PATIENCE)
        return True


def _same_suspicion(last: Sight | None, sight: Sight | None) -> bool:
    """Whether one consumer could have had something at both looks, and had nothing in between."""
    if last is None or sight is None or sight.deliveries != last.deliveries:
        return False
    return sight.subscriptions == last.subscriptions and all(
        look.ready > 0 and look.room > 0 and not look.receiving for look in (last, sight)
    )
