"""Fills the arguments of a user's function by their names, so that functions written elsewhere run unchanged.

    one completion   sample, item (OpenAI) · prompt, completion, state, info, task (verifiers) ·
                     solution_str, ground_truth (verl)
    the whole group  prompts, completions, completion_ids (TRL) · queries (OpenRLHF) · samples, items, states
    any other name   a key of the row, or the argument's own default

A function that names one of `GROUP_MARKS` is called once for all completions of a prompt: each column it names is then
a list (`answer`, or in the plural `answers`), and it returns a list. `**kwargs` receives every column of the row, and
the prompt and the completion under their names.

In the `text` form a completion is a string and a prompt the contents of its messages, one a line; in the `messages`
form both are lists of `{"role", "content"}`, as TRL and verifiers have it for conversations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

from headrace_rewards.protocol import Sample

Form = Literal["text", "messages"]

GROUP_MARKS = frozenset({"completions", "prompts", "queries", "samples", "completion_ids"})

_ABSENT = object()


class Unbindable(TypeError):
    """No row could ever fill these parameters."""


class MissingInput(LookupError):
    """This row lacks a key that an argument needs."""


def _prompt(sample: Sample, form: Form) -> Any:
    if form == "messages":
        return sample.messages
    return "\n".join(str(message.get("content", "")) for message in sample.messages)


def _completion(sample: Sample, form: Form) -> Any:
    if form == "messages":
        return [{"role": "assistant", "content": sample.output_text}]
    return sample.output_text


def _state(sample: Sample, form: Form) -> dict[str, Any]:
    return {**sample.item, "prompt": _prompt(sample, form), "completion": _completion(sample, form)}


def _query(sample: Sample, form: Form) -> str:
    return _prompt(sample, "text") + sample.output_text


_OF_ONE: dict[str, Callable[[Sample, Form], Any]] = {
    "sample": lambda sample, form: sample.as_openai(),
    "item": lambda sample, form: sample.item,
    "prompt": _prompt,
    "completion": _completion,
    "solution_str": lambda sample, form: sample.output_text,
    "state": _state,
}
_OF_GROUP: dict[str, Callable[[Sample, Form], Any]] = {
    "prompts": _prompt,
    "completions": _completion,
    "completion_ids": lambda sample, form: None if sample.token_ids is None else list(sample.token_ids),
    "samples": lambda sample, form: sample.as_openai(),
    "items": lambda sample, form: sample.item,
    "queries": _query,
    "states": _state,
}


class Binding:
    """What one function asks for. `whole_group` says whether it takes all completions of a prompt at once."""

    def __init__(self, function: Callable[..., Any], form: Form) -> None:
        """Raises `Unbindable`, saying which parameter is in the way."""
        self._form: Form = form
        parameters = _parameters(function)
        self._named = {
            parameter.name: parameter
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        self._takes_rest = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self.whole_group = not GROUP_MARKS.isdisjoint(self._named)
        single = [name for name in self._named if name in _OF_ONE]
        if self.whole_group and single:
            group = ", ".join(sorted(GROUP_MARKS.intersection(self._named)))
            raise Unbindable(
                f"it asks for one completion ({', '.join(single)}) and for the whole group ({group}) at once"
            )
        if not self._named and not self._takes_rest:
            raise Unbindable("it takes no argument by name; write it as grade(sample, item), say")

    def arguments(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Keyword arguments for these samples (exactly one, unless `whole_group`); raises `MissingInput`."""
        arguments = {}
        for name, parameter in self._named.items():
            value = self._group_value(samples, name) if self.whole_group else _value(samples[0], name, self._form)
            if value is not _ABSENT:
                arguments[name] = value
            elif parameter.default is parameter.empty:
                known = ", ".join(samples[0].item) or "none"
                raise MissingInput(f"argument '{name}' is neither a known name nor a key of the row (keys: {known})")
        if self._takes_rest:
            arguments = {**self._rest(samples), **arguments}
        return arguments

    def _group_value(self, samples: Sequence[Sample], name: str) -> Any:
        if name in _OF_GROUP:
            return [_OF_GROUP[name](sample, self._form) for sample in samples]
        for column in (name, name.removesuffix("s")):
            values = [_column(sample, column) for sample in samples]
            if _ABSENT not in values:
                return values
        return _ABSENT

    def _rest(self, samples: Sequence[Sample]) -> dict[str, Any]:
        keys = [str(key) for key in samples[0].item]
        if self.whole_group:
            values = {name: self._group_value(samples, name) for name in (*keys, "prompts", "completions")}
        else:
            values = {name: _value(samples[0], name, self._form) for name in (*keys, "prompt", "completion")}
        return {name: value for name, value in values.items() if value is not _ABSENT}


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as fault:
        raise Unbindable(f"its parameters cannot be read: {fault}") from None
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise Unbindable(f"'{parameter.name}' is positional-only, and arguments are filled by name")
    return parameters


def _value(sample: Sample, name: str, form: Form) -> Any:
    if name in _OF_ONE:
        return _OF_ONE[name](sample, form)
    return _column(sample, name)


def _column(sample: Sample, name: str) -> Any:
    if name in sample.item:
        return sample.item[name]
    if name == "ground_truth":  # verl's rows nest it; others call it the answer
        nested = sample.item.get("reward_model")
        if isinstance(nested, dict) and "ground_truth" in nested:
            return nested["ground_truth"]
        return sample.item.get("answer", _ABSENT)
    if name == "info":  # verifiers passes both always
        return {}
    if name == "task":
        return "default"
    return _ABSENT
