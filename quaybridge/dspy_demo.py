"""The demo of examples/dspy: programs that live in sessions, on two nodes of the embedded broker, answer questions.

The model is DSPy's own dummy, so that nobody is asked and nothing is paid: each answer is one that was told before.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.util import find_spec

from bridge_protocol.errors import QuaybridgeError
from broker.memory import MemoryBroker
from producer.async_producer import AsyncProducer
from worker_node.node import Node
from worker_node.settings import NodeSettings

SERVICE = "demo-dspy"
COMMAND = (sys.executable, "-m", "examples.dspy")
SESSIONS = 6
TIMEOUT = 60.0  # seconds
SIGNATURE = {
    "inputs": [{"name": "question", "type": "string", "description": "what to answer"}],
    "outputs": [{"name": "answer", "type": "string", "description": "in a word or two"}],
}
ANSWERS = {
    "What is the capital of Norway?": "Oslo",
    "How many legs has a spider?": "eight",
}


class DspyMissing(QuaybridgeError):
    """Raised when DSPy is not installed; the message says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question that was answered: by which program, in which session, on which node."""

    session: str
    node: str
    program: str
    question: str
    answer: str


async def answer_by_programs(nodes: int) -> list[Answered]:
    """Ask every question in every session. Raises DspyMissing, and what the node and the producer do."""
    if find_spec("dspy") is None:
        raise DspyMissing("DSPy is not installed: pip install 'quaybridge[dspy]' gets it")
    broker = MemoryBroker()
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(AsyncProducer(broker, name="quaybridge demo"))
        started = [_node(f"demo-{number}", broker) for number in range(nodes)]
        for node in started:
            stack.push_async_callback(node.stop)
        await asyncio.gather(*(node.start() for node in started))
        asked = await asyncio.gather(*(_ask(producer, number) for number in range(SESSIONS)))
    return [answered for session in asked for answered in session]


def _node(name: str, broker: MemoryBroker) -> Node:
    service = {
        "name": SERVICE,
        "command": COMMAND,
        "bridges": 1,
        "start_timeout": TIMEOUT,
        "sessions": {"enabled": True},
    }
    return Node(NodeSettings.model_validate({"name": name, "services": [service]}), broker)


async def _ask(producer: AsyncProducer, number: int) -> list[Answered]:
    name = f"user-{number}"
    kind = ("predict", "chain_of_thought")[number % 2]
    session = producer.session(name, service=SERVICE)
    told = [{"reasoning": "it is known", "answer": answer} for answer in ANSWERS.values()]
    await session.call("configure_lm", {"model": "dummy", "answers": told}, timeout=TIMEOUT)
    program = {"id": "answerer", "signature": SIGNATURE, "program_type": kind}
    await session.call("create_program", program, timeout=TIMEOUT)
    answered = []
    for question in ANSWERS:
        asked = {"program_id": "answerer", "inputs": {"question": question}}
        reply = await session.call("execute_program", asked, timeout=TIMEOUT)
        answer = reply.result["outputs"]["answer"]
        answered.append(Answered(session=name, node=reply.node or "", program=kind, question=question, answer=answer))
    await session.close()
    return answered
