"""The outlets of a service: one for each run whose requester wants to hear of it before the reply."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bridge_protocol.envelope import WANTS_CHUNKS, WANTS_PROGRESS
from broker.link import Link
from worker_node.bridge import Bridge
from worker_node.core.admission import reply_address
from worker_node.outlet import Outlet
from worker_node.settings import StreamSettings
from worker_node.work import Work


class Outlets:
    """Opens and closes them. `control_queue`: where this node hears of credit, if it is connected.

    `on_stalled(work, why)`, at most once a run: what it says cannot be delivered, so it need not go on.
    """

    def __init__(
        self,
        link: Link,
        *,
        node: str,
        publish_timeout: float,
        control_queue: Callable[[], str | None],
        on_stalled: Callable[[Work, str], None],
    ) -> None:
        self._link = link
        self._node = node
        self._publish_timeout = publish_timeout
        self._control_queue = control_queue
        self._on_stalled = on_stalled
        self._open: dict[str, Outlet] = {}  # by the id of the run

    def __repr__(self) -> str:
        return f"<Outlets {len(self)} open>"

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Outlet]:
        return iter(self._open.values())

    def open(self, bridge: Bridge, work: Work, settings: StreamSettings) -> None:
        """A run begins: an outlet for what it says before its reply, if that is wanted."""
        self.close(work)  # of a run that was given to another bridge unbegun
        work.outlet = None
        work.chunks = 0
        headers = work.delivery.properties.headers
        chunks, progress = headers.get(WANTS_CHUNKS) is True, headers.get(WANTS_PROGRESS) is True
        if not (chunks or progress) or reply_address(work.requester) is None:
            return
        outlet: Outlet
        outlet = work.outlet = Outlet(
            self._link,
            node=self._node,
            attempt=work.attempt,
            chunks=chunks,
            progress=progress,
            delay=settings.delay,
            reader_timeout=settings.reader_timeout,
            publish_timeout=self._publish_timeout,
            requester=lambda: work.requester,
            control_queue=self._control_queue,
            on_hold=lambda held: bridge.hold(outlet, held),
            on_stalled=lambda why: self._on_stalled(work, why),
        )
        self._open[outlet.run] = outlet

    def close(self, work: Work) -> None:
        """A run is over: what it said before its reply goes out."""
        if work.outlet is not None:
            work.outlet.end()
            self._open.pop(work.outlet.run, None)

    def grant(self, run: str, chunks: int) -> None:
        """The reader of that run has taken so many of its chunks, all in all."""
        if (outlet := self._open.get(run)) is not None:
            outlet.grant(chunks)

    def readdress(self) -> None:
        """This node has another control queue."""
        for outlet in list(self):
            outlet.readdress()
