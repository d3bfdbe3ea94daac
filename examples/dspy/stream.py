"""A program's text as the model gives it: DSPy's own streaming, for a command that is a generator.

DSPy streams on an event loop, and ends a model's request only where a task of that loop is cancelled. So there is one
loop, in a thread of its own, for all streams of the process: the connections to the provider, which are kept, belong to
it. The main thread only waits: what interrupts that interrupts nothing of DSPy's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Mapping
from queue import SimpleQueue
from typing import Any

import dspy
from dspy.streaming import StatusMessageProvider, StreamListener, StreamResponse, streamify


class ProgramStreams:
    """Runs programs, and gives out their text. Starts its thread with the first one."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<ProgramStreams {'running' if self._loop else 'idle'}>"

    def run(
        self, module: Any, inputs: Mapping[str, Any], model: Any
    ) -> Generator[StreamResponse, None, dspy.Prediction]:
        """The pieces of the outputs as they come, then the prediction. Raises what DSPy does.

        The model's request ends when the generator is closed. A model that does not stream gives no pieces.
        """
        # Unbounded: an answer is as long as the model's max_tokens at most. None: there is no more.
        said: SimpleQueue[StreamResponse | None] = SimpleQueue()
        running = asyncio.run_coroutine_threadsafe(_drive(module, inputs, model, said), self._started())
        running.add_done_callback(lambda done: said.put(None))
        try:
            while (piece := said.get()) is not None:
                yield piece
            return running.result()
        finally:
            running.cancel()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="program-streams", daemon=True).start()
            self._loop = loop
        return self._loop


class _NoStatus(StatusMessageProvider):  # type: ignore[misc]  # DSPy is not typed
    """DSPy would tell of each tool, from a loop of another thread."""

    def tool_start_status_message(self, instance: Any, inputs: dict[str, Any]) -> None:
        return None

    def tool_end_status_message(self, outputs: Any) -> None:
        return None


async def _drive(
    module: Any, inputs: Mapping[str, Any], model: Any, said: SimpleQueue[StreamResponse | None]
) -> dspy.Prediction:
    predictor = _last_predictor(module)
    listeners = [StreamListener(name, predict=predictor) for name in predictor.signature.output_fields]
    prediction = None
    with dspy.context(lm=model):
        program = streamify(
            module, status_message_provider=_NoStatus(), stream_listeners=listeners, is_async_program=True
        )
        async for item in program(**inputs):
            if isinstance(item, StreamResponse):
                said.put(item)
            elif isinstance(item, dspy.Prediction):
                prediction = item
    return prediction


def _last_predictor(module: Any) -> Any:
    """The predictor that gives the program's outputs: what an agent thinks before is not among them."""
    match module:
        case dspy.ReAct():
            return module.extract.predict
        case dspy.ChainOfThought():
            return module.predict
    return module
