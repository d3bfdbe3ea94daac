"""A test's own corner of a RabbitMQ that all tests share."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from quaybridge.rabbitmq import RabbitMQ


@dataclass(frozen=True)
class Vhost:
    """A vhost for one test, in a RabbitMQ shared by all."""

    name: str
    url: str
    rabbitmq: RabbitMQ

    def control(self, command: str, *arguments: str) -> str:
        """Run a rabbitmqctl command in this vhost."""
        return self.rabbitmq.control(command, "--vhost", self.name, *arguments)

    def delete_queue(self, queue: str) -> None:
        """Remove a queue behind the back of whoever uses it."""
        if self.rabbitmq.management_port is None:
            self.control("delete_queue", queue)
        else:
            self.rabbitmq.manage("DELETE", f"/api/queues/{quote(self.name, safe='')}/{quote(queue, safe='')}")
