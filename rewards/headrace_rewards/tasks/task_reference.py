"""Parses a reference to a task's rows, `reasoning_gym:chain_sum?size=1000&seed=42&min_terms=2`.

The task's name is followed by parameters in the form of a URL's query. `size` and `seed` are Headrace's own; so are
`answer` and `system` for tasks of reasoning-gym, and `split` for environments of verifiers. All others are parameters
of the task. A value that can be parsed as JSON (`2`, `0.5`, `true`, `["+","-"]`) is JSON, any other is text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl

from headrace_core.errors import InvalidRequest
from headrace_core.storage.dataset import TASK_LIBRARIES

from .answer_extraction import INSTRUCTIONS, Place

MAX_ROWS = 100_000
Split = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class TaskReference:
    """A parsed reference. It denotes the same rows on every machine with the same version of the library."""

    library: str
    task: str
    parameters: dict[str, Any]
    size: int
    seed: int
    answer: Place = "whole"
    system: str | None = None
    split: Split = "train"

    @classmethod
    def parse(cls, text: str) -> TaskReference:
        """Raises `InvalidRequest` that says what to change."""
        library, colon, rest = text.partition(":")
        task, _, query = rest.partition("?")
        if not colon or library not in TASK_LIBRARIES or not task:
            raise InvalidRequest(f"{text!r} is not of the form {TASK_LIBRARIES[0]}:task?parameter=value&…")
        parameters: dict[str, Any] = {}
        for name, value in _pairs(query):
            if name in parameters:
                raise InvalidRequest(f"{text}: {name!r} is given twice")
            parameters[name] = value if name == "system" else _value(value)
        size = _integer(parameters.pop("size", 1000), "size", 1, MAX_ROWS)
        seed = _integer(parameters.pop("seed", 0), "seed", 0, 2**63 - 1)
        if library == "verifiers":
            split: Split = _one_of(get_args(Split), parameters.pop("split", "train"), "split")
            return cls(library, task, parameters, size, seed, split=split)
        answer: Place = _one_of(tuple(INSTRUCTIONS), parameters.pop("answer", "tag"), "answer")
        return cls(library, task, parameters, size, seed, answer, parameters.pop("system", None))


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=100)
    except ValueError as fault:
        raise InvalidRequest(f"{query!r} is not of the form parameter=value&…: {fault}") from None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _integer(value: Any, name: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidRequest(f"{name} is a number from {least} to {most}, not {value!r}")
    return value


def _one_of(known: tuple[Any, ...], value: Any, name: str) -> Any:
    if value not in known:
        raise InvalidRequest(f"{name} is one of {', '.join(known)}, not {value!r}")
    return value
