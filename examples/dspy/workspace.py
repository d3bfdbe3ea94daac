"""A workspace: the programs and the model of one session, or of what is asked outside of any."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy
from pydantic import TypeAdapter

from bridge_sdk import ApplicationError
from examples.dspy.signature import describe, read_inputs, read_signature
from examples.dspy.stream import ProgramStreams
from examples.dspy.tools import TOOLS

ID_REQUIRED = "Program ID is required"
MOST_PROGRAMS = 1000  # in a workspace
LONGEST_ID = 256  # characters

_ANYTHING = TypeAdapter(Any)


@dataclass(slots=True, kw_only=True)
class Program:
    """One program. `created` in seconds since 1970."""

    id: str
    type: str
    signature: Any
    module: Any
    created: float
    executions: int = 0

    def info(self) -> dict[str, Any]:
        """What is told of it."""
        return {
            "id": self.id,
            "program_type": self.type,
            "signature": describe(self.signature),
            "created_at": self.created,
            "execution_count": self.executions,
        }


@dataclass(slots=True)
class Workspace:
    """`model` None: none was configured here. Whatever cannot be done raises ApplicationError."""

    model: Any = None
    programs: dict[str, Program] = field(default_factory=dict)
    executions: int = 0
    errors: int = 0

    def create(
        self,
        id: str | None,
        signature: Mapping[str, Any] | str,
        type: str,
        instructions: str | None,
        tools: list[str],
    ) -> Program:
        """Make a program."""
        name = required(id)
        if name in self.programs:
            raise ApplicationError(f"Program already exists: {name}")
        if len(self.programs) >= MOST_PROGRAMS:
            raise ApplicationError(f"there are {MOST_PROGRAMS} programs already: delete some")
        read = read_signature(signature, instructions)
        program = Program(id=name, type=type, signature=read, module=_module(type, read, tools), created=time.time())
        self.programs[name] = program
        return program

    def find(self, id: str | None) -> Program:
        """The program of that id."""
        name = required(id)
        if name not in self.programs:
            raise ApplicationError(f"Program not found: {name}")
        return self.programs[name]

    def execute(self, program: Program, inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
        """What the program gives for `inputs`, as JSON. Raises what DSPy does, too."""
        with dspy.context(lm=model):
            prediction = program.module(**read_inputs(program.signature, inputs))
        return self._executed(program, prediction)

    def stream(
        self, program: Program, inputs: Mapping[str, Any], model: Any, streams: ProgramStreams
    ) -> Generator[Any, None, dict[str, Any]]:
        """The same, with the pieces of its outputs as they come. One that is left early counts for nothing."""
        prediction = yield from streams.run(program.module, read_inputs(program.signature, inputs), model)
        return self._executed(program, prediction)

    def clear(self) -> int:
        """Forget the programs; how many there were."""
        count = len(self.programs)
        self.programs.clear()
        return count

    def _executed(self, program: Program, prediction: Any) -> dict[str, Any]:
        self.executions += 1
        program.executions += 1
        outputs: dict[str, Any] = _ANYTHING.dump_python(dict(prediction.items()), mode="json", fallback=str)
        return outputs


def required(id: str | None) -> str:
    """`id`, if it can be one. Raises ApplicationError."""
    if id is None or not id.strip():
        raise ApplicationError(ID_REQUIRED)
    if len(id) > LONGEST_ID:
        raise ApplicationError(f"Program ID is too long: at most {LONGEST_ID} characters")
    return id


def _module(type: str, signature: Any, tools: list[str]) -> Any:
    if tools and type != "react":
        raise ApplicationError("only programs of the type react have tools")
    match type:
        case "predict":
            return dspy.Predict(signature)
        case "chain_of_thought":
            return dspy.ChainOfThought(signature)
        case "react":
            if unknown := [name for name in tools if name not in TOOLS]:
                raise ApplicationError(f"there is no tool {unknown[0][:64]!r}: there are {', '.join(TOOLS)}")
            return dspy.ReAct(signature, tools=[TOOLS[name] for name in tools])
    raise ApplicationError(f"program_type {type[:64]!r} is none of predict, chain_of_thought, react")
