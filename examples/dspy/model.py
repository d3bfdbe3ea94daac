"""Language models: what `configure_lm` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
from dspy.utils import DummyLM

from bridge_sdk import ApplicationError

DUMMY = "dummy"
# As DSPex names providers, where DSPy has another name.
_PROVIDERS = {"google": "gemini"}


def full_name(model: str, provider: str | None) -> str:
    """The model as DSPy wants it: provider/model."""
    if provider is None or "/" in model:
        return model
    return f"{_PROVIDERS.get(provider, provider)}/{model}"


def make_model(
    name: str,
    *,
    api_key: str | None = None,
    api_base: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    answers: list[Any] | dict[str, Any] | None = None,
) -> Any:
    """A model. The one named dummy gives `answers`, by turns or by what the question holds, and asks nobody.

    Raises ApplicationError. A key that is not given is looked for by DSPy in the environment.
    """
    if name == DUMMY:
        if not answers or not all(isinstance(answer, Mapping) for answer in _each(answers)):
            raise ApplicationError("the dummy model needs answers: a list of outputs, or outputs by question")
        return DummyLM(answers)
    if answers is not None:
        raise ApplicationError("only the dummy model takes answers")
    options = {"api_key": api_key, "api_base": api_base, "temperature": temperature, "max_tokens": max_tokens}
    # DSPy would keep answers in files of the user's home; and which bridge had asked before must not matter.
    given = {option: value for option, value in options.items() if value is not None}
    return dspy.LM(name, cache=False, **given)


def _each(answers: list[Any] | dict[str, Any]) -> list[Any]:
    return list(answers.values()) if isinstance(answers, dict) else answers
