"""Keeps a node alive: `python supervisor.py SETTINGS BROKER_URL`. Each time it is killed, another is forked.

SETTINGS are JSON. Says on stdout how each one ended, a line each. Killed with its process group.
"""

from __future__ import annotations

import asyncio
import os
import sys

from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from worker_node.node import Node
from worker_node.settings import NodeSettings


async def serve(settings: NodeSettings, url: str) -> None:
    await Node(settings, AmqpBroker(parse_addresses(url))).run()


def main() -> None:
    settings = NodeSettings.model_validate_json(sys.argv[1])
    while True:
        child = os.fork()
        if not child:
            try:
                asyncio.run(serve(settings, sys.argv[2]))
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
