"""A node in a process of its own, to be killed: `python victim.py TOKEN`. Two bridges that breed, an embedded broker.

It says `starting` when it is about to start, and `serving` when both bridges have passed their handshake.
"""

import asyncio
import sys

from rig import breeder

from broker.memory import MemoryBroker
from worker_node.node import Node
from worker_node.settings import NodeSettings


async def main() -> None:
    service = {"name": "work", "command": breeder(sys.argv[1]), "bridges": 2}
    node = Node(NodeSettings.model_validate({"services": [service]}), MemoryBroker())
    print("starting", flush=True)
    await node.start()
    while node.services[0].pool.ready < 2:
        await asyncio.sleep(0.005)
    print("serving", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
