"""Environments written for the verifiers library: their rows, and the scores of completions by their rubrics.

Imported only in sandboxed processes. An environment is a package that the operator installed, whose module has
`load_environment(**arguments)`. Only single-turn environments (`SingleTurnEnv`) are supported: an episode is one prompt
and one completion.

Unlike in the library's own scoring, a reward function that raises does not score 0: its error is raised.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace_core.errors import InvalidRequest

from .task_reference import TaskReference
from .verifiers_modules import module_of

_PLURALS = {
    "prompts": "prompt", "completions": "completion", "answers": "answer", "tasks": "task", "infos": "info",
}  # fmt: skip
_DEFAULTS: Mapping[str, Any] = {"answer": "", "task": "default", "info": {}}
Messages = list[dict[str, Any]]


def load(name: str, arguments: Mapping[str, Any]) -> Any:
    """The environment. Raises `InvalidRequest` if it cannot be loaded, or takes more than one turn."""
    try:
        import verifiers
    except ImportError as missing:
        raise InvalidRequest(
            f"verifiers' environments cannot be used here ({missing}): pip install 'headrace[verifiers]'"
        ) from missing
    if not hasattr(verifiers, "load_environment"):
        raise InvalidRequest("the installed verifiers has no load_environment; install a version before 0.2")
    module_of(name)
    try:
        environment = verifiers.load_environment(name, **arguments)
    except Exception as fault:  # an environment's own code, with a user's arguments
        cause = fault.__cause__ or fault
        raise InvalidRequest(f"environment {name!r} cannot be loaded: {type(cause).__name__}: {cause}") from fault
    if not isinstance(environment, verifiers.SingleTurnEnv):
        kind = type(environment).__name__
        raise InvalidRequest(f"environment {name!r} is a {kind}; only single-turn environments can be trained on")
    return environment


def rows(reference: TaskReference) -> Iterator[dict[str, Any]]:
    """The rows of a training file, as `dataset_file` writes them; raises `InvalidRequest`."""
    environment = load(reference.task, reference.parameters)
    held_out = reference.split == "eval"
    try:
        data = environment.get_eval_dataset() if held_out else environment.get_dataset()
    except Exception as fault:
        raise InvalidRequest(f"environment {reference.task!r} gives no rows: {fault}") from fault
    order = list(range(len(data)))
    random.Random(reference.seed).shuffle(order)
    for index in order[: reference.size]:
        row = dict(data[index])
        yield {"messages": _messages(row.pop("prompt")), **row}


def _messages(prompt: str | Sequence[Mapping[str, Any]]) -> Messages:
    """The prompt as messages; a text prompt (of an environment for completion models) becomes one user message."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    # The library's tables give every message the fields that any of them has.
    return [{key: value for key, value in message.items() if value is not None} for message in prompt]


@dataclass(frozen=True, slots=True)
class _Function:
    call: Any
    weight: float
    objects: Mapping[str, Any]
    """Objects that the rubric passes to the function by name, such as a parser."""

    @property
    def of_group(self) -> bool:
        return not {"states", *_PLURALS}.isdisjoint(inspect.signature(self.call).parameters)


class Rubric:
    """The reward functions of an environment, each with its weight."""

    def __init__(self, environment: Any) -> None:
        """Raises `InvalidRequest` for an environment without reward functions, or with a scoring method of its own."""
        self._functions = list(_functions(environment.rubric))
        self._set_up = environment.setup_state
        self._form = environment.message_type
        if not self._functions:
            raise InvalidRequest("the environment has no reward function")

    @property
    def of_group(self) -> bool:
        """Whether one of the functions takes all completions of a prompt at once."""
        return any(function.of_group for function in self._functions)

    async def score(self, prompts: Sequence[Messages], texts: Sequence[str], items: Sequence[Any]) -> list[Any]:
        """For each completion a dict with the value of each function, and their weighted sum as `score`."""
        episodes = zip(prompts, texts, items, strict=True)
        states = await asyncio.gather(*(self._state(*episode) for episode in episodes))
        scored: list[dict[str, float]] = [{} for _ in states]
        totals = [0.0] * len(states)
        for function in self._functions:
            for index, value in enumerate(await _call_on_all(function, states)):
                totals[index] += function.weight * float(value)
                scored[index][function.call.__name__] = float(value)
        return [{**parts, "score": total} for parts, total in zip(scored, totals, strict=True)]

    async def _state(self, prompt: Messages, text: str, item: Mapping[str, Any]) -> dict[str, Any]:
        """The state of an episode, which all reward functions share and may write to.

        `setup_state` of the environment gets it as it would before a model is called: without a completion.
        """
        chat = self._form == "chat"
        completion: Any = [{"role": "assistant", "content": text}] if chat else text
        turn = {"prompt": prompt if chat else prompt[-1]["content"], "completion": completion}
        begun = {**_DEFAULTS, **item, **turn, "completion": [] if chat else "", "trajectory": [], "is_completed": False}
        state = await self._set_up(begun)
        return {**(begun if state is None else state), **turn, "trajectory": [turn], "is_completed": True}


def _functions(rubric: Any) -> Iterator[_Function]:
    from verifiers import Rubric as Plain
    from verifiers import RubricGroup

    if isinstance(rubric, RubricGroup):
        for part in rubric.rubrics:
            yield from _functions(part)
        return
    if (type(rubric).score_rollout, type(rubric).score_group) != (Plain.score_rollout, Plain.score_group):
        raise InvalidRequest(f"{type(rubric).__name__} scores in a way of its own, not by reward functions alone")
    for call, weight in zip(rubric.funcs, rubric.weights, strict=True):
        yield _Function(call, weight, rubric.class_objects)


async def _call_on_all(function: _Function, states: list[dict[str, Any]]) -> Sequence[Any]:
    if not function.of_group:
        known = [{**state, **function.objects, "state": state} for state in states]
        return await asyncio.gather(*(_call(function.call, arguments) for arguments in known))
    columns = {plural: [state[name] for state in states] for plural, name in _PLURALS.items()}
    values = list(await _call(function.call, {**columns, **function.objects, "states": states}))
    if len(values) != len(states):
        raise ValueError(f"{function.call.__name__} returned {len(values)} values for {len(states)} completions")
    return values


async def _call(call: Any, known: Mapping[str, Any]) -> Any:
    """Call with those of the `known` arguments that the function names, or with all of them if it takes `**kwargs`."""
    parameters = inspect.signature(call).parameters
    takes_rest = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    value = call(**(known if takes_rest else {name: known[name] for name in parameters if name in known}))
    return await value if inspect.isawaitable(value) else value
