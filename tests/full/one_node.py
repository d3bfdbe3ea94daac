"""One node, until SIGTERM: `python one_node.py SETTINGS BROKER_URL HAND_BACK`. Says `serving` when it does.

SETTINGS are JSON; HAND_BACK is for how many seconds after it has connected it leaves others' sessions to them.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from worker_node import partitions
from worker_node.node import Node
from worker_node.settings import NodeSettings


async def main() -> None:
    partitions.HAND_BACK = float(sys.argv[3])
    node = Node(NodeSettings.model_validate_json(sys.argv[1]), AmqpBroker(parse_addresses(sys.argv[2])))
    await node.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    print("serving", flush=True)
    await stopping.wait()
    await node.drain()


if __name__ == "__main__":
    asyncio.run(main())
