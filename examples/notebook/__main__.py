"""Shows what becomes of sessions when a node is killed: `python -m examples.notebook`.

Three nodes, and 50 notebooks that each add up numbers in a variable. When all are under way, the node that serves the
most of them is killed. Half of the notebooks are strict: they are told that they lost their variables, and begin
anew. The others are rebuilt: their cells are run again, and they never notice. Those on other nodes are kept. The
sum of every notebook is known, so each answer proves that no variable was lost without a word: exit status 1 if not.

    --broker auto|memory|URL    where to run: the best RabbitMQ found here, or the embedded broker
    --sessions N                how many notebooks
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bridge_protocol.errors import BridgeCrashed, QuaybridgeError, SessionLost
from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import Broker
from broker.memory import MemoryBroker
from examples.notebook.nodes import SERVICE, NodeNotStarted, nodes
from producer.async_producer import AsyncProducer
from producer.options import Mode
from quaybridge.broker_choice import AUTOMATIC, chosen_broker
from worker_node import partitions

NODES = ("one", "two", "three")
CELLS = 20  # after the node is killed
PAUSE = 0.1  # seconds between two cells of a notebook, so that the kill meets it somewhere between
TIMEOUT = 120.0  # seconds


class Notebook:
    """A session that adds up 1, 2, 3, … in its bridge, and knows what the sum must be."""

    def __init__(self, producer: AsyncProducer, number: int, *, rebuilt: bool) -> None:
        mode: Mode = "rebuild" if rebuilt else "strict"
        journal = ["run"] if rebuilt else []
        self.session = producer.session(f"notebook {number}", service=SERVICE, mode=mode, journal=journal)
        self.home = ""  # the node that served it before the kill
        self.told = 0  # how often it was told that it lost its variables
        self.wrong = 0
        self._next = 1
        self._sum: int | None = None  # None: its variable has yet to be made

    @property
    def fate(self) -> str:
        """kept, lost or rebuilt; or wrong, which would be a lie of the queue's."""
        if self.wrong:
            return "wrong"
        return "lost" if self.told else "rebuilt" if self.session.rebuilt else "kept"

    async def begin(self) -> None:
        """Its first two cells; sets `home`."""
        await self._add()
        reply = await self.session.call("run", {"code": "total"}, timeout=TIMEOUT)
        self.home = reply.node or ""

    async def go_on(self) -> None:
        """The rest of them."""
        for _ in range(CELLS):
            await self._add()
            await asyncio.sleep(PAUSE)

    async def _add(self) -> None:
        number, self._next = self._next, self._next + 1
        begins = self._sum is None
        cell = f"total = {number}\ntotal" if begins else f"total += {number}\ntotal"
        try:
            reply = await self.session.call("run", {"code": cell}, timeout=TIMEOUT)
        except (SessionLost, BridgeCrashed):
            self.told += 1
            self._sum = None
            return
        self._sum = number if self._sum is None else self._sum + number
        self.wrong += reply.result["value"] != str(self._sum)


async def show(broker: Broker, url: str | None, count: int, say: Console) -> tuple[list[Notebook], str]:
    """Run it; the notebooks, and the node that was killed."""
    async with nodes(NODES, url, broker) as kills, AsyncProducer(broker, name="notebooks") as producer:
        notebooks = [Notebook(producer, number, rebuilt=number % 2 == 1) for number in range(count)]
        await asyncio.gather(*(notebook.begin() for notebook in notebooks))
        # For so long a node that has just connected leaves other nodes' sessions alone: see worker_node.partitions.
        say.print(f"{count} notebooks on {len(NODES)} nodes; these settle for {partitions.HAND_BACK:g} s …")
        await asyncio.sleep(partitions.HAND_BACK)
        busiest = Counter(notebook.home for notebook in notebooks).most_common(1)[0][0]
        going_on = asyncio.gather(*(notebook.go_on() for notebook in notebooks))
        await asyncio.sleep(CELLS * PAUSE / 4)
        await kills[busiest]()
        say.print(f"node {busiest} was {'stopped at once' if url is None else 'killed'}")
        await going_on
        return notebooks, busiest


def table(notebooks: Sequence[Notebook], killed: str) -> Table:
    """How many were kept, lost and rebuilt, by the node that had them."""
    made = Table(title=f"{len(notebooks)} sessions, one of {len(NODES)} nodes killed")
    made.add_column("node")
    for heading in ("sessions", "kept", "lost (told)", "rebuilt", "wrong"):
        made.add_column(heading, justify="right")
    for name in (*NODES, None):
        fates = Counter(notebook.fate for notebook in notebooks if name in (None, notebook.home))
        figures = (fates.total(), *(fates[fate] for fate in ("kept", "lost", "rebuilt", "wrong")))
        title = "all" if name is None else f"{name} (killed)" if name == killed else name
        made.add_row(title, *map(str, figures), end_section=name == NODES[-1])
    return made


def verified(notebooks: Sequence[Notebook], killed: str) -> bool:
    """Whether those of the killed node were lost and told, or rebuilt, and all others kept."""
    return all((notebook.fate == "kept") is (notebook.home != killed) and not notebook.wrong for notebook in notebooks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose a broker, run, print."""
    parser = argparse.ArgumentParser(prog="python -m examples.notebook", description=__doc__.partition("\n")[0])
    parser.add_argument("--broker", default=AUTOMATIC, metavar="auto|memory|URL", help="where to run")
    parser.add_argument("--sessions", type=int, default=50, metavar="N", help="how many notebooks")
    options = parser.parse_args(arguments)
    say = Console(stderr=True, soft_wrap=True)
    try:
        with chosen_broker(options.broker) as choice:
            say.print(f"broker: {choice.described} ({choice.why})")
            broker = MemoryBroker() if choice.url is None else AmqpBroker(parse_addresses(choice.url))
            notebooks, killed = asyncio.run(show(broker, choice.url, options.sessions, say))
    except (QuaybridgeError, NodeNotStarted, ValueError) as error:
        say.print(str(error))
        return 1
    Console().print(table(notebooks, killed))
    right = verified(notebooks, killed)
    print("verified: every sum is right, and only sessions of the killed node were lost" if right else "NOT verified")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
