"""Functions written for other systems are called with what they ask for by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headrace_rewards.binding import Binding, MissingInput, PlainParser, Unbindable
from headrace_rewards.protocol import Sample

QUESTION = {"role": "user", "content": "1+1?"}


def samples(*texts: str, **item: Any) -> list[Sample]:
    return [Sample(text, item, [{"role": "system", "content": "Add."}, QUESTION], "stop", (7, 8)) for text in texts]


def bound(function: Callable[..., Any], given: list[Sample], form: Any = "text") -> dict[str, Any]:
    return Binding(function, form).arguments(given)


def test_openai() -> None:
    arguments = bound(lambda sample, item: 0, samples("2", answer=2))
    assert arguments["item"] == {"answer": 2}
    assert arguments["sample"]["output_text"] == "2"
    assert arguments["sample"]["output_json"] == 2
    assert arguments["sample"]["choices"][0]["message"] == {"role": "assistant", "content": "2"}


def test_columns_and_defaults() -> None:
    given = samples("2", answer=2, level="easy")
    assert bound(lambda completion, answer, weight=3: 0, given) == {"completion": "2", "answer": 2}
    rest = bound(lambda completion, **rest: 0, given)
    assert isinstance(rest.pop("parser"), PlainParser)
    assert rest.pop("state")["level"] == "easy"
    assert rest == {
        "completion": "2",
        "prompt": "Add.\n1+1?",
        "answer": 2,
        "level": "easy",
        "info": {},
        "task": "default",
    }


def test_verl() -> None:
    def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any) -> None: ...

    nested = samples("2", data_source="gsm8k", reward_model={"style": "rule", "ground_truth": "2"})
    assert bound(compute_score, nested) == {
        "data_source": "gsm8k",
        "solution_str": "2",
        "ground_truth": "2",
        "extra_info": {},
    }
    flat = samples("2", data_source="gsm8k", answer="3", extra_info={"i": 1})
    assert bound(compute_score, flat)["ground_truth"] == "3"
    assert bound(compute_score, flat)["extra_info"] == {"i": 1}


def test_verl_puts_nothing_but_options_into_kwargs() -> None:
    given = samples("2", data_source="gsm8k", answer="2")
    binding = Binding(lambda solution_str, ground_truth, **kwargs: 0, "text", {"method": "strict"})
    assert binding.arguments(given) == {"solution_str": "2", "ground_truth": "2", "method": "strict"}


def test_verl_in_batches() -> None:
    def compute_score(data_sources: Any, solution_strs: Any, ground_truths: Any, extra_infos: Any) -> None: ...

    assert bound(compute_score, samples("2", "3", data_source="gsm8k", reward_model={"ground_truth": "2"})) == {
        "data_sources": ["gsm8k", "gsm8k"],
        "solution_strs": ["2", "3"],
        "ground_truths": ["2", "2"],
        "extra_infos": [{}, {}],
    }


def test_verifiers() -> None:
    given = samples("2", answer="2")
    arguments = bound(lambda prompt, completion, answer, state, info, task, parser: 0, given, "messages")
    assert arguments["prompt"] == [{"role": "system", "content": "Add."}, QUESTION]
    assert arguments["completion"] == [{"role": "assistant", "content": "2"}]
    assert arguments["state"]["answer"] == "2"
    assert (arguments["info"], arguments["task"]) == ({}, "default")
    assert arguments["parser"].parse_answer(arguments["completion"]) == "2"
    assert arguments["parser"].parse_answer("as it is") == "as it is"
    assert arguments["parser"].parse_answer([QUESTION]) is None


def test_verifiers_takes_groups_by_plural_names() -> None:
    given = samples("2", "3", answer="2", info={"i": 1})
    arguments = bound(lambda states, answers, infos, tasks: [], given)
    assert [state["completion"] for state in arguments["states"]] == ["2", "3"]
    assert arguments["answers"] == ["2", "2"]
    assert arguments["infos"] == [{"i": 1}] * 2
    assert arguments["tasks"] == ["default"] * 2
    rest = bound(lambda completions, answers, **kwargs: [], given)
    assert {"states", "infos", "tasks", "parser", "prompts"} <= rest.keys()


def test_a_column_in_the_plural_is_no_mark_of_a_group() -> None:
    arguments = bound(lambda completion, answers: 0, samples("2", answers=["2", "two"]))
    assert arguments == {"completion": "2", "answers": ["2", "two"]}


def test_trl_takes_the_whole_group() -> None:
    given = samples("2", "3", answer="2")
    binding = Binding(lambda completions, answer, **kwargs: [], "text")
    assert binding.whole_group
    arguments = binding.arguments(given)
    assert arguments.pop("log_metric")("accuracy", 0.5) is None
    assert arguments.pop("log_extra")("answers", ["2", "3"]) is None
    assert arguments == {
        "prompts": ["Add.\n1+1?"] * 2,
        "completions": ["2", "3"],
        "completion_ids": [[7, 8], [7, 8]],
        "answer": ["2", "2"],
    }
    messages = bound(lambda prompts, completions, completion_ids: [], given, "messages")
    assert [completion[0]["content"] for completion in messages["completions"]] == ["2", "3"]
    assert messages["completion_ids"] == [[7, 8], [7, 8]]


@pytest.mark.parametrize("column", ["label", "labels", "answer"])
def test_openrlhf_takes_plural_columns(column: str) -> None:
    arguments = bound(lambda queries, prompts, labels, **kwargs: [], samples("2", "3", **{column: "x"}))
    assert arguments == {
        "queries": ["Add.\n1+1?2", "Add.\n1+1?3"],
        "prompts": ["Add.\n1+1?"] * 2,
        "labels": ["x", "x"],
    }


def test_options_are_arguments_that_win_over_the_row() -> None:
    given = samples("2", weight=1, answer="2")
    binding = Binding(lambda completion, weight, answer: 0, "text", {"weight": 5})
    assert binding.arguments(given) == {"completion": "2", "weight": 5, "answer": "2"}
    with pytest.raises(Unbindable, match=r"no option 'wait'; its arguments: completion, weight"):
        Binding(lambda completion, weight: 0, "text", {"wait": 5})


def test_what_only_the_other_library_has_may_be_left_to_its_default() -> None:
    def rising(completions: Any, trainer_state: Any = None) -> None: ...

    assert bound(rising, samples("2")) == {"completions": ["2"]}


def test_a_column_called_like_a_known_name_does_not_hide_it() -> None:
    assert bound(lambda completion, **rest: 0, samples("2", completion="column"))["completion"] == "2"


def test_a_missing_column_names_what_the_row_has() -> None:
    with pytest.raises(MissingInput, match=r"'rubric' .*keys: answer, level"):
        bound(lambda sample, rubric: 0, samples("2", answer=2, level=1))


def _positional(sample: Any, /) -> None: ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: 0, "no argument by name"),
        (lambda *args: 0, "no argument by name"),
        (_positional, "positional-only"),
        (lambda completion, prompts: 0, "at once"),
        (lambda completions, trainer_state: 0, "'trainer_state': scoring is apart from training"),
        (lambda solution_str, reward_router_address: 0, "no reward model of verl's"),
    ],
)
def test_what_no_row_could_fill(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(Unbindable, match=reason):
        Binding(function, "text")
