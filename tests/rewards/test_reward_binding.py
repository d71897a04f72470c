"""Functions written for other systems are called with what they ask for by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headrace_rewards.binding import Binding, MissingInput, Unbindable
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
    assert bound(lambda completion, **rest: 0, given) == {
        "completion": "2",
        "prompt": "Add.\n1+1?",
        "answer": 2,
        "level": "easy",
    }


def test_verl() -> None:
    def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> None: ...

    nested = samples("2", data_source="gsm8k", reward_model={"style": "rule", "ground_truth": "2"})
    assert bound(compute_score, nested) == {"data_source": "gsm8k", "solution_str": "2", "ground_truth": "2"}
    flat = samples("2", data_source="gsm8k", answer="3", extra_info={"i": 1})
    assert bound(compute_score, flat)["ground_truth"] == "3"
    assert bound(compute_score, flat)["extra_info"] == {"i": 1}


def test_verifiers() -> None:
    given = samples("2", answer="2")
    arguments = bound(lambda prompt, completion, answer, state, info, task: 0, given, "messages")
    assert arguments["prompt"] == [{"role": "system", "content": "Add."}, QUESTION]
    assert arguments["completion"] == [{"role": "assistant", "content": "2"}]
    assert arguments["state"]["answer"] == "2"
    assert (arguments["info"], arguments["task"]) == ({}, "default")


def test_trl_takes_the_whole_group() -> None:
    given = samples("2", "3", answer="2")
    binding = Binding(lambda completions, answer, **kwargs: [], "text")
    assert binding.whole_group
    assert binding.arguments(given) == {
        "prompts": ["Add.\n1+1?"] * 2,
        "completions": ["2", "3"],
        "answer": ["2", "2"],
    }
    messages = bound(lambda prompts, completions, completion_ids: [], given, "messages")
    assert [completion[0]["content"] for completion in messages["completions"]] == ["2", "3"]
    assert messages["completion_ids"] == [[7, 8], [7, 8]]


def test_openrlhf_takes_plural_columns() -> None:
    arguments = bound(lambda queries, prompts, labels: [], samples("2", "3", label="x"))
    assert arguments["queries"] == ["Add.\n1+1?2", "Add.\n1+1?3"]
    assert arguments["labels"] == ["x", "x"]


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
    ],
)
def test_what_no_row_could_fill(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(Unbindable, match=reason):
        Binding(function, "text")
