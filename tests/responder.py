"""What stands in for nodes and bridges in tests of producers: it answers with the project's own encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge_protocol import messages
from bridge_protocol.envelope import reply_properties
from bridge_protocol.errors import Code
from bridge_protocol.messages import ErrorInfo, Request
from bridge_protocol.topology import request_queue, service_topology, shared_topology
from broker.contract import Broker, Channel, Delivery, Message

SERVICE = "echo"


class Responder:
    """Serves SERVICE: `act` decides what becomes of each delivery; by default its args come back at once.

    What is published without an address for replies is only seen.
    """

    def __init__(self, act: Callable[[Responder, Delivery, Request], None] | None = None) -> None:
        self.channel: Channel | None = None
        self.seen: list[tuple[Delivery, Request]] = []
        self._act = act

    async def start(self, broker: Broker) -> None:
        """Declare the service's queues and consume."""
        self.channel = await broker.open("responder", on_closed=lambda _: None)
        await self.channel.declare([*shared_topology(), *service_topology(SERVICE)])
        await self.channel.consume(request_queue(SERVICE), self._on_delivery, prefetch=5000)

    @property
    def numbers(self) -> list[Any]:
        """`args["n"]` of each request, in the order in which they came."""
        return [request.args["n"] for _, request in self.seen]

    def succeed(self, delivery: Delivery, request: Request, result: Any) -> None:
        """Answer with success."""
        self.reply(delivery, messages.encode_result(request.id, result))

    def fail(self, delivery: Delivery, request: Request, code: Code, error: str, info: ErrorInfo | None = None) -> None:
        """Answer with a failure."""
        self.reply(delivery, messages.encode_failure(request.id, error, info=info), code=code)

    def reply(
        self, delivery: Delivery, body: bytes, *, code: Code | None = None, correlation_id: str | None = None
    ) -> None:
        """Answer with any bytes, and with the id of another request if so wished."""
        assert self.channel is not None
        properties = delivery.properties
        assert properties.reply_to is not None
        envelope = reply_properties(
            correlation_id=correlation_id or properties.correlation_id,
            code=code,
            attempt=1,
            node="alpha",
            redelivered=False,
        )
        sent = self.channel.publish(
            Message(exchange="", routing_key=properties.reply_to, body=body, properties=envelope), timeout=5
        )
        sent.add_done_callback(lambda sent: sent.exception())  # who asked may be gone

    def _on_delivery(self, delivery: Delivery) -> None:
        request = messages.decode_request(delivery.body)
        self.seen.append((delivery, request))
        delivery.ack()
        if delivery.properties.reply_to is None:
            return
        if self._act is None:
            self.succeed(delivery, request, request.args)
        else:
            self._act(self, delivery, request)
