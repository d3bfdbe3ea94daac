"""`make chaos`: run it, print one table, and end with 0 only if nothing was lost.

Exit status: 0 passed; 1 lost, doubled or otherwise wrong; 2 the run is void; 3 no container can be started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from chaos.cluster import Cluster
from chaos.plan import CALM, DIRECT, DURABLE, GLIMPSE, LONG, LONG_DIRECT, LONG_DURABLE, SHORT
from chaos.report import as_json, as_table, problems
from chaos.run import run
from quaybridge.rabbitmq import DEFAULT_IMAGE, RabbitMQError, docker_available

PLANS = {
    "short": SHORT,
    "long": LONG,
    "calm": CALM,
    "glimpse": GLIMPSE,
    "direct": DIRECT,
    "durable": DURABLE,
    "long-direct": LONG_DIRECT,
    "long-durable": LONG_DURABLE,
}


def main() -> int:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--plan", choices=PLANS, default="short")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of every random choice")
    parser.add_argument("--image", default=os.environ.get("RABBITMQ_IMAGE") or DEFAULT_IMAGE)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--logs", type=Path, help="keep the nodes' logs in this directory")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the containers would be left
    print(f"seed {options.seed}", file=sys.stderr)
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it reports what the report counts
    if (problem := docker_available()) is not None:
        print(problem, file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory(prefix="quaybridge-chaos-") as temporary:
        directory = options.logs or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with Cluster(options.image) as cluster:
                report = asyncio.run(run(PLANS[options.plan], cluster, directory, seed=options.seed))
        except RabbitMQError as error:
            print(error, file=sys.stderr)
            return 3
    if options.json:
        print(json.dumps(as_json(report)))
    else:
        Console().print(as_table(report))
    for problem in problems(report):
        print(problem, file=sys.stderr)
    return 0 if report.passed else 2 if report.void and report.verdict is not None and report.verdict.sound else 1


if __name__ == "__main__":
    sys.exit(main())
