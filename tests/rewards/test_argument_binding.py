"""Functions written for other systems are called with what they ask for by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace_core.protocols.grader_check import Failure, NotApplicable, Score
from headrace_rewards.protocol import Progress, Sample
from headrace_rewards.user_code.argument_binding import Binding, MissingInput, PlainParser, Unbindable

VERL = {"num_turns": 2, "rollout_reward_scores": {}}
QUESTION = {"role": "user", "content": "1+1?"}


def samples(*texts: str, **item: Any) -> list[Sample]:
    return [Sample(text, item, [{"role": "system", "content": "Add."}, QUESTION], "stop", (7, 8)) for text in texts]


def bound(function: Callable[..., Any], given: list[Sample], form: Any = "text") -> dict[str, Any]:
    return Binding(function, form).arguments(given)[0]


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
        "extra_info": VERL,
    }
    flat = samples("2", data_source="gsm8k", answer="3", extra_info={"i": 1})
    assert bound(compute_score, flat)["ground_truth"] == "3"
    assert bound(compute_score, flat)["extra_info"] == {"i": 1, **VERL}


def test_verl_reads_the_nested_truth_alone() -> None:
    given = samples("2", ground_truth="1", answer="0", reward_model={"ground_truth": "2"})
    assert bound(lambda solution_str, ground_truth: 0, given)["ground_truth"] == "2"
    assert (
        bound(lambda solution_str, ground_truth: 0, samples("2", ground_truth="1", answer="0"))["ground_truth"] == "1"
    )
    (row,) = given
    bound(lambda solution_str, extra_info: 0, given)["extra_info"]["note"] = 1
    assert "extra_info" not in row.item


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda solution_str, ground_truth, extra_info=None, method="strict", score=1.0: 0, {"extra_info"}),
        (lambda solution_strs, ground_truths, method="strict", score=1.0: 0, set()),
        (lambda queries, labels, method="strict", score=1.0: 0, set()),
        (lambda sample, item, method="strict", score=1.0: 0, set()),
    ],
)
def test_a_column_does_not_overwrite_a_default_where_the_library_passes_no_columns(
    function: Callable[..., Any], kept: set[str]
) -> None:
    arguments = bound(function, samples("2", answer="2", method="flexible", score=0.31))
    assert {"method", "score"}.isdisjoint(arguments)
    assert kept <= arguments.keys()


def test_a_column_does_overwrite_a_default_where_the_library_passes_columns() -> None:
    arguments = bound(lambda completions, answer, method="strict": 0, samples("2", answer="2", method="flexible"))
    assert arguments["method"] == ["flexible"]
    assert bound(lambda solution_str, method: 0, samples("2", method="flexible"))["method"] == "flexible"


def test_verl_puts_nothing_but_options_into_kwargs() -> None:
    given = samples("2", data_source="gsm8k", answer="2")
    binding = Binding(lambda solution_str, ground_truth, **kwargs: 0, "text", {"method": "strict"})
    assert binding.arguments(given)[0] == {"solution_str": "2", "ground_truth": "2", "method": "strict"}


def test_verl_in_batches() -> None:
    def compute_score(data_sources: Any, solution_strs: Any, ground_truths: Any, extra_infos: Any) -> None: ...

    assert bound(compute_score, samples("2", "3", data_source="gsm8k", reward_model={"ground_truth": "2"})) == {
        "data_sources": ["gsm8k", "gsm8k"],
        "solution_strs": ["2", "3"],
        "ground_truths": ["2", "2"],
        "extra_infos": [VERL, VERL],
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
    arguments, logged = binding.arguments(given)
    assert arguments["log_metric"]("accuracy", 0.5) is None
    assert arguments.pop("log_metric")("broken", math.nan) is None
    assert arguments["log_extra"]("answers", ["2", "3"]) is None
    assert arguments.pop("log_extra")("lengths", np.array([1, 2])) is None
    assert arguments.pop("trainer_state").global_step == 0
    assert logged.beside([Score(1.0), Score(0.0, {"accuracy": 0.1}, notes={"answers": "its own"})]) == [
        Score(1.0, {"accuracy": 0.5, "lengths": 1.0}, notes={"answers": "2"}),
        Score(0.0, {"accuracy": 0.1, "lengths": 2.0}, notes={"answers": "its own"}),
    ]
    assert logged.beside([NotApplicable(), Failure("exception", "no")]) == [NotApplicable(), Failure("exception", "no")]
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
    assert binding.arguments(given)[0] == {"completion": "2", "weight": 5, "answer": "2"}
    with pytest.raises(Unbindable, match=r"no option 'wait'; its arguments: completion, weight"):
        Binding(lambda completion, weight: 0, "text", {"wait": 5})


def test_trl_reads_the_trainers_state() -> None:
    def rising(completions: Any, trainer_state: Any) -> None: ...

    given = [
        replace(sample, progress=Progress(step=30, total_steps=50, steps_per_epoch=20.0)) for sample in samples("2")
    ]
    state = bound(rising, given)["trainer_state"]
    assert (state.global_step, state.max_steps, state.epoch, state.num_train_epochs) == (30, 50, 1.5, 3)
    assert (bound(rising, samples("2"))["trainer_state"].global_step, state.is_world_process_zero) == (0, True)


def test_token_ids_that_nobody_knows_are_no_argument() -> None:
    given = [replace(sample, token_ids=None) for sample in samples("2")]
    assert bound(lambda completions, completion_ids=None: 0, given) == {"completions": ["2"]}
    assert "completion_ids" not in bound(lambda completions, **kwargs: 0, given)
    with pytest.raises(MissingInput, match="'completion_ids': only texts are tried here"):
        bound(lambda completions, completion_ids: 0, given)


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
        (lambda solution_str, reward_router_address: 0, "no reward model of verl's"),
    ],
)
def test_what_no_row_could_fill(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(Unbindable, match=reason):
        Binding(function, "text")
