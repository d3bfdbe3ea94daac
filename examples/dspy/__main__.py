"""The bridge: DSPex's commands. `ping`, `shutdown` and `cleanup_session` are the SDK's.

A request in a session meets the programs and the model of that session; one in none those of this bridge, which in a
pool is one of several: what belongs together belongs in a session.

The model of a workspace that was not given one is what the environment says: DSPY_MODEL, and DSPY_API_KEY and
DSPY_API_BASE where it needs them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from typing import Any

from bridge_sdk import ApplicationError, Bridge, Cancelled
from examples.dspy.keys import DiscreetText, Keys, keep_quiet

# Otherwise DSPy gets a list of models and their prices from the internet, with the first request: a bridge is to ask
# nobody but the model that it was told to.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
KEYS = Keys()
KEYS.add_from(os.environ)
keep_quiet(KEYS)

# What follows may log when it is imported, and is slow to import.
try:
    import dspy
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install 'quaybridge[dspy]'") from None

from examples.dspy.model import full_name, make_model  # noqa: E402
from examples.dspy.stream import ProgramStreams  # noqa: E402
from examples.dspy.workspace import Program, Workspace  # noqa: E402

WORKSPACE = "workspace"


class Commands:
    """The commands, as methods. `default`: the model of a workspace that has none of its own, or None."""

    def __init__(self, bridge: Bridge, keys: Keys, default: Any) -> None:
        self._bridge = bridge
        self._keys = keys
        self._default = default
        self._shared = Workspace()
        self._streams = ProgramStreams()
        self._started = time.monotonic()

    def configure_lm(
        self,
        model: str,
        api_key: str | None = None,
        provider: str | None = None,
        api_base: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        answers: list[Any] | dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        self._keys.add(api_key or "")
        name = full_name(model, provider)
        with self._discreetly() as workspace:
            workspace.model = make_model(
                name,
                api_key=api_key,
                api_base=api_base,
                temperature=temperature,
                max_tokens=max_tokens,
                answers=answers,
            )
        return {"status": "configured", "model": self._keys.hide(name), "temperature": temperature}

    def create_program(
        self,
        id: str | None = None,
        signature: dict[str, Any] | str | None = None,
        program_type: str = "predict",
        instructions: str | None = None,
        tools: list[str] | None = None,
    ) -> dict[str, Any]:
        with self._discreetly() as workspace:
            program = workspace.create(id, signature or {}, program_type, instructions, tools or [])
            return self._told({"program_id": program.id, "status": "created", **program.info()})

    def execute_program(
        self, program_id: str | None = None, inputs: dict[str, Any] | None = None, id: str | None = None
    ) -> dict[str, Any]:
        with self._discreetly() as workspace:
            program, model = workspace.find(program_id or id), self._model(workspace)
            begun = time.perf_counter()
            outputs = workspace.execute(program, inputs or {}, model)
            return self._executed(program, outputs, begun)

    def stream_program(
        self, program_id: str | None = None, inputs: dict[str, Any] | None = None, id: str | None = None
    ) -> Generator[dict[str, str], None, dict[str, Any]]:
        with self._discreetly() as workspace:
            program, model = workspace.find(program_id or id), self._model(workspace)
            begun = time.perf_counter()
            pieces = workspace.stream(program, inputs or {}, model, self._streams)
            # Closed, not left to be collected: a model that nobody reads is to stop.
            with closing(pieces):
                outputs = yield from self._seen(pieces)
            return self._executed(program, outputs, begun)

    def list_programs(self) -> dict[str, Any]:
        with self._discreetly() as workspace:
            programs = [program.info() for program in workspace.programs.values()]
            return self._told({"programs": programs, "total_count": len(programs)})

    def get_program_info(self, program_id: str | None = None, id: str | None = None) -> dict[str, Any]:
        with self._discreetly() as workspace:
            program: Program = workspace.find(program_id or id)
            return self._told(program.info())

    def delete_program(self, program_id: str | None = None, id: str | None = None) -> dict[str, Any]:
        with self._discreetly() as workspace:
            program = workspace.find(program_id or id)
            del workspace.programs[program.id]
            return self._told({"program_id": program.id, "status": "deleted"})

    def get_stats(self) -> dict[str, Any]:
        with self._discreetly() as workspace:
            model = workspace.model or self._default
            return self._told(
                {
                    "programs_count": len(workspace.programs),
                    "executions": workspace.executions,
                    "errors": workspace.errors,
                    "model": getattr(model, "model", None),
                    "dspy_version": version("dspy"),
                    "pid": os.getpid(),
                    "uptime": round(time.monotonic() - self._started, 3),
                }
            )

    def cleanup(self) -> dict[str, Any]:
        with self._discreetly() as workspace:
            return {"status": "cleaned", "programs_removed": workspace.clear()}

    def reset_state(self) -> dict[str, Any]:
        with self._discreetly() as workspace:
            count = workspace.clear()
            workspace.model = None
            workspace.executions = workspace.errors = 0
            return {"status": "reset", "programs_cleared": count}

    def _workspace(self) -> Workspace:
        if self._bridge.request.session_id is None:
            return self._shared
        workspace: Workspace = self._bridge.session.state.setdefault(WORKSPACE, Workspace())
        return workspace

    def _model(self, workspace: Workspace) -> Any:
        model = workspace.model or self._default
        if model is None:
            raise ApplicationError("no language model is configured: send configure_lm, or set DSPY_MODEL")
        return model

    def _executed(self, program: Program, outputs: dict[str, Any], begun: float) -> dict[str, Any]:
        took = round(time.perf_counter() - begun, 6)
        return self._told({"program_id": program.id, "outputs": outputs, "execution_time": took})

    def _seen(self, pieces: Generator[Any, None, dict[str, Any]]) -> Generator[dict[str, str], None, dict[str, Any]]:
        """Pieces of outputs as they may be seen: a key may come in two."""
        fields: dict[str, DiscreetText] = {}
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                outputs: dict[str, Any] = end.value
                break
            name = piece.signature_field_name
            text = fields.setdefault(name, DiscreetText(self._keys))
            seen = text.add(piece.chunk or "") + (text.end() if piece.is_last_chunk else "")
            if seen:
                yield self._told({"field": name, "text": seen})
        for name, text in fields.items():
            if seen := text.end():
                yield self._told({"field": name, "text": seen})
        return outputs

    def _told(self, result: dict[str, Any]) -> dict[str, Any]:
        """A result as it may be seen: a model can say what was in its prompt."""
        hidden: dict[str, Any] = self._keys.hide_in(result)
        return hidden

    @contextmanager
    def _discreetly(self) -> Iterator[Workspace]:
        """The workspace of this request. What fails in the block does so without a key in what is said of it."""
        workspace = self._workspace()
        try:
            yield workspace
        except ApplicationError as error:
            workspace.errors += 1
            raise ApplicationError(self._keys.hide(str(error))) from None
        except Cancelled:
            raise Cancelled from None  # of what was handled at that moment nothing is told
        except Exception as error:  # noqa: BLE001  (of DSPy's many; a provider's answer may quote the key)
            workspace.errors += 1
            retryable = isinstance(error, dspy.LMRateLimitError | dspy.LMTimeoutError | dspy.LMTransportError)
            # Not raised from it: a traceback shows what it was raised from.
            said = self._keys.hide(f"{type(error).__name__}: {error}").strip()
            raise ApplicationError(said, retryable=retryable) from None


def default_model(environ: dict[str, str]) -> Any:
    """The model that the environment names, or None."""
    name = environ.get("DSPY_MODEL")
    if not name:
        return None
    return make_model(name, api_key=environ.get("DSPY_API_KEY"), api_base=environ.get("DSPY_API_BASE"))


def main() -> None:
    """Serve."""
    bridge = Bridge()
    bridge.session_opened(lambda session: session.state.update({WORKSPACE: Workspace()}))
    commands = Commands(bridge, KEYS, default_model(dict(os.environ)))
    for name in dir(commands):
        if not name.startswith("_"):
            bridge.command(getattr(commands, name))
    bridge.serve()


if __name__ == "__main__":
    main()
