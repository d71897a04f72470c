"""Fills the arguments of a user's function by their names, so that functions written elsewhere run unchanged.

    one completion   sample, item (OpenAI) · prompt, completion, state, info, task, parser (verifiers) ·
                     solution_str, ground_truth, extra_info (verl)
    the whole group  prompts, completions, completion_ids, trainer_state, log_extra, log_metric (TRL) ·
                     queries, labels (OpenRLHF) · states, answers, infos, tasks (verifiers) ·
                     solution_strs (verl's batches) · samples, items
    any other name   an option of the grader, a key of the row, or the argument's own default, in this order; in
                     functions for verl, OpenRLHF and OpenAI, which pass no other keys of the row, the default
                     precedes the row

A function with an argument of `GROUP_MARKS` is called once for all completions of a prompt. Each column is then a list
(`answer`, or in the plural `answers`), and the function returns a list.

`**kwargs` receives what the function's own library passes there: TRL and verifiers pass every column of the row and
their own arguments, verl and OpenRLHF only options.

In the `text` form a completion is a string, and a prompt the contents of its messages, one per line. In the `messages`
form both are lists of `{"role", "content"}`, like conversations in TRL and verifiers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import msgspec

from ..protocol import Sample
from .logged import Logged

Form = Literal["text", "messages"]

GROUP_MARKS = frozenset({"completions", "prompts", "queries", "samples", "completion_ids", "states", "solution_strs"})

_ABSENT = object()
_NO_KWARGS_COLUMNS = frozenset({"solution_str", "solution_strs", "queries"})
"""Names of verl's and OpenRLHF's functions, whose `**kwargs` hold no columns."""
_VERL_AND_OPENRLHF_COLUMNS = frozenset(
    {"data_source", "data_sources", "ground_truth", "ground_truths", "extra_info", "extra_infos", "label", "labels"}
)
"""Keys of the row that verl and OpenRLHF pass. Any other argument keeps its default, even if the row has such a key."""
_NUM_TURNS = 2
"""Turns of an episode as verl counts them: the question and the answer."""
_OF_VERIFIERS = ("states", "answers", "infos", "tasks")
_UNAVAILABLE = {
    "reward_router_address": "no reward model of verl's is served here",
    "reward_model_tokenizer": "no reward model of verl's is served here",
}
"""Arguments that only the function's own library can pass, and why they are not available here."""


class Unbindable(TypeError):
    """The function has a parameter that no row can fill."""


class MissingInput(LookupError):
    """The row lacks a key that an argument needs."""


def _prompt(sample: Sample, form: Form) -> Any:
    if form == "messages":
        return sample.messages
    return "\n".join(str(message.get("content", "")) for message in sample.messages)


def _completion(sample: Sample, form: Form) -> Any:
    if form == "messages":
        return [{"role": "assistant", "content": sample.output_text}]
    return sample.output_text


def _state(sample: Sample, form: Form) -> dict[str, Any]:
    always = {"answer": "", "info": {}, "task": "default"}
    return {**always, **sample.item, "prompt": _prompt(sample, form), "completion": _completion(sample, form)}


def _trainer_state(sample: Sample) -> SimpleNamespace:
    """The attributes of transformers' `TrainerState` that rewards read; step 0 of 0 outside training."""
    progress = sample.progress
    step, total, epoch = (0, 0, 0.0) if progress is None else msgspec.structs.astuple(progress)
    return SimpleNamespace(
        global_step=step,
        max_steps=total,
        epoch=step / epoch if epoch else 0.0,
        num_train_epochs=math.ceil(total / epoch) if epoch else 0,
        log_history=[],
        is_local_process_zero=True,
        is_world_process_zero=True,
    )


def _query(sample: Sample, form: Form) -> str:
    return _prompt(sample, "text") + sample.output_text


_SINGLE_ARGUMENTS: dict[str, Callable[[Sample, Form], Any]] = {
    "sample": lambda sample, form: sample.as_openai(),
    "item": lambda sample, form: sample.item,
    "prompt": _prompt,
    "completion": _completion,
    "solution_str": lambda sample, form: sample.output_text,
    "state": _state,
}
_GROUP_ARGUMENTS: dict[str, Callable[[Sample, Form], Any]] = {
    "prompts": _prompt,
    "completions": _completion,
    "completion_ids": lambda sample, form: None if sample.token_ids is None else list(sample.token_ids),
    "samples": lambda sample, form: sample.as_openai(),
    "items": lambda sample, form: sample.item,
    "queries": _query,
    "states": _state,
    "solution_strs": lambda sample, form: sample.output_text,
}


class PlainParser:
    """The default `parser` of verifiers, for environments without one: it returns the text unchanged."""

    def parse(self, text: str) -> str:
        return text

    def parse_answer(self, completion: str | list[dict[str, Any]]) -> str | None:
        """The completion's text, or that of its last assistant message."""
        if isinstance(completion, str):
            return completion
        said = self.get_assistant_messages(completion)
        return str(said[-1].get("content", "")) if said else None

    def get_assistant_messages(self, completion: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [message for message in completion if message.get("role") == "assistant"]


_PARSER = PlainParser()


class Binding:
    """Fills the arguments of one function. `whole_group`: whether it takes all completions of a prompt at once."""

    def __init__(self, function: Callable[..., Any], form: Form, options: Mapping[str, Any] | None = None) -> None:
        """`options`: fixed arguments. Raises an `Unbindable` that names the parameter."""
        self._form: Form = form
        self._options = dict(options or {})
        parameters = _parameters(function)
        self._named = {
            parameter.name: parameter
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        self._takes_kwargs = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self.whole_group = not GROUP_MARKS.isdisjoint(self._named)
        self._no_kwargs_columns = not _NO_KWARGS_COLUMNS.isdisjoint(self._named)
        of_openai = {"sample", "item"} <= self._named.keys() or {"samples", "items"} <= self._named.keys()
        self._prefers_defaults = self._no_kwargs_columns or of_openai
        self._check()

    def _check(self) -> None:
        single = [name for name in self._named if name in _SINGLE_ARGUMENTS]
        if self.whole_group and single:
            group = ", ".join(sorted(GROUP_MARKS.intersection(self._named)))
            raise Unbindable(
                f"it asks for one completion ({', '.join(single)}) and for the whole group ({group}) at once"
            )
        if not self._named and not self._takes_kwargs:
            raise Unbindable("it takes no argument by name; write it as grade(sample, item), say")
        for name, parameter in self._named.items():
            if name in _UNAVAILABLE and parameter.default is parameter.empty and name not in self._options:
                raise Unbindable(f"it asks for '{name}': {_UNAVAILABLE[name]}; give the argument a default")
        unknown = [name for name in self._options if name not in self._named]
        if unknown and not self._takes_kwargs:
            raise Unbindable(f"it takes no option '{unknown[0]}'; its arguments: {', '.join(self._named)}")

    def arguments(self, samples: Sequence[Sample]) -> tuple[dict[str, Any], Logged]:
        """(keyword arguments, collector of what the call logs) for these samples: exactly one, unless `whole_group`.

        Raises `MissingInput`.
        """
        logged = Logged(len(samples))
        shared = _shared(samples[0], logged)
        arguments = dict(self._options)
        for name, parameter in self._named.items():
            has_default = parameter.default is not parameter.empty
            if name in arguments or (has_default and self._prefers_defaults and not self._library_passes(name)):
                continue
            value = self._argument(samples, name, shared)
            if value is not _ABSENT:
                arguments[name] = value
            elif not has_default:
                raise MissingInput(_missing(name, samples[0]))
        if self._takes_kwargs:
            arguments = {**self._kwargs(samples, shared), **arguments}
        return arguments, logged

    def _library_passes(self, name: str) -> bool:
        """Whether the function's own library passes an argument with that name."""
        return (
            name in _SINGLE_ARGUMENTS
            or name in _GROUP_ARGUMENTS
            or (self._no_kwargs_columns and name in _VERL_AND_OPENRLHF_COLUMNS)
        )

    def _argument(self, samples: Sequence[Sample], name: str, shared: Mapping[str, Any]) -> Any:
        value = self._of_group(samples, name) if self.whole_group else _value(samples[0], name, self._form)
        return shared.get(name, _ABSENT) if value is _ABSENT else value

    def _of_group(self, samples: Sequence[Sample], name: str) -> Any:
        if name == "completion_ids" and any(sample.token_ids is None for sample in samples):
            return _ABSENT
        if name in _GROUP_ARGUMENTS:
            return [_GROUP_ARGUMENTS[name](sample, self._form) for sample in samples]
        for column in (name, name.removesuffix("s")):
            values = [_column(sample, column) for sample in samples]
            if _ABSENT not in values:
                return values
        return _ABSENT

    def _kwargs(self, samples: Sequence[Sample], shared: Mapping[str, Any]) -> dict[str, Any]:
        """What `**kwargs` receives in addition to the options."""
        if self._no_kwargs_columns:
            return {}
        names = tuple(map(str, samples[0].item))
        if not self.whole_group:
            names += ("prompt", "completion", "state", "info", "task", "parser")
        else:
            names += ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
            if not self._named.keys().isdisjoint(_OF_VERIFIERS):
                names += (*_OF_VERIFIERS, "parser")
        values = {name: self._argument(samples, name, shared) for name in names}
        return {name: value for name, value in values.items() if value is not _ABSENT}


def _shared(sample: Sample, logged: Logged) -> dict[str, Any]:
    """Arguments that are the same for all samples; a key of the row with that name takes precedence."""
    return {
        "parser": _PARSER,
        "trainer_state": _trainer_state(sample),
        "log_extra": logged.log_extra,
        "log_metric": logged.log_metric,
    }


def _missing(name: str, sample: Sample) -> str:
    if name == "completion_ids":
        return (
            "argument 'completion_ids': only texts are tried here, and no model says what their tokens are; name it "
            "(--model of `headrace rewards check`), or give the argument a default"
        )
    keys = ", ".join(sample.item) or "none"
    return f"argument '{name}' is neither a known name nor a key of the row (keys: {keys})"


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
    if name in _SINGLE_ARGUMENTS:
        return _SINGLE_ARGUMENTS[name](sample, form)
    return _column(sample, name)


def _column(sample: Sample, name: str) -> Any:
    item = sample.item
    if name == "ground_truth":
        return _truth(item)
    if name == "extra_info":
        return _extra_info(item)
    if name in item:
        return item[name]
    if name == "label":
        return _truth(item)
    if name == "info":  # verifiers always passes one
        return {}
    if name == "task":
        return "default"
    return _ABSENT


def _truth(item: Mapping[str, Any]) -> Any:
    """The ground truth: nested in verl's rows (verl reads no other), else the key `ground_truth` or `answer`."""
    nested = item.get("reward_model")
    if isinstance(nested, dict) and "ground_truth" in nested:
        return nested["ground_truth"]
    return item.get("ground_truth", item.get("answer", _ABSENT))


def _extra_info(item: Mapping[str, Any]) -> Any:
    """The row's `extra_info` with the keys that verl always adds; a value that is no dict is unchanged."""
    info = item.get("extra_info")
    if info is not None and not isinstance(info, dict):
        return info
    return {**(info or {}), "num_turns": _NUM_TURNS, "rollout_reward_scores": {}}
