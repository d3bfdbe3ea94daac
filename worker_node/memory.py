"""How much memory a bridge uses, with every process below it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping

from broker.thread import in_thread
from worker_node.process_status import parent, proportional, resident


class MemoryWatch:
    """Looks every `interval` seconds at what processes use, in a thread, until it is closed.

    `look_at` names the processes, by a key of the caller's; `on_measured(key, bytes)` is called on the event loop.
    """

    def __init__(
        self, look_at: Callable[[], Mapping[int, int]], on_measured: Callable[[int, int], None], interval: float
    ) -> None:
        self._look_at = look_at
        self._on_measured = on_measured
        self._interval = interval
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="memory watch")

    def __repr__(self) -> str:
        return f"<MemoryWatch every {self._interval:g} s>"

    def close(self) -> None:
        """Look no more."""
        self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            looked_at = dict(self._look_at())
            try:
                sizes = await in_thread(tree_memory, looked_at.values())
            except OSError:
                continue  # neither a thread nor a descriptor is to be had just now
            # A key may stand for another process by now.
            for key, pid in self._look_at().items():
                if looked_at.get(key) == pid and pid in sizes:
                    self._on_measured(key, sizes[pid])


def tree_memory(roots: Iterable[int]) -> dict[int, int]:
    """The memory in bytes of each of these processes and all its descendants, by process id; without those gone.

    What processes share is counted once (proportional set size, PSS); for a process whose PSS cannot be read, its
    resident size counts whole. Looks at every process of the host once, so it belongs into a thread.
    """
    # Not by psutil: that is another megabyte in each node.
    children: dict[int, list[int]] = {}
    present: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdecimal() and (above := parent(pid := int(name))) is not None:
            present.add(pid)
            children.setdefault(above, []).append(pid)
    sizes: dict[int, int] = {}
    for root in roots:
        if root not in present:
            continue
        sizes[root] = 0
        waiting = [root]
        while waiting:
            pid = waiting.pop()
            sizes[root] += proportional(pid) or resident(pid) or 0
            waiting += children.get(pid, ())
    return sizes
