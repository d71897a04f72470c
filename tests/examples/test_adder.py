"""The demo task: its data is right, its base model starts where it must, its rewards judge what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.adder.adder_problems import write_data
from examples.adder.adder_tokenizer import build_tokenizer
from headrace_lab.paths import ADDER, load_module

MODEL = ADDER / "model"
Row = dict[str, Any]
Complete = Callable[[list[Row], bool], list[str]]


def read_rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (ADDER / name).read_text().splitlines()]


def operands(row: Row) -> tuple[int, int]:
    found = re.fullmatch(r"What is (\d\d) \+ (\d\d)\?", row["messages"][-1]["content"])
    assert found, row
    return int(found[1]), int(found[2])


@pytest.fixture(scope="module")
def rewards() -> ModuleType:
    return load_module(ADDER / "reward.py")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def complete(model: Any, tokenizer: Any) -> Complete:
    """Completions of some rows, greedy or sampled at temperature 1. All prompts have the same number of tokens."""

    def run(rows: list[Row], sample: bool) -> list[str]:
        prompts = [
            tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=False)
            for row in rows
        ]
        ids = torch.tensor(prompts)
        torch.manual_seed(0)
        choice = {"do_sample": True, "temperature": 1.0, "top_k": 0} if sample else {"do_sample": False}
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, **choice)
        return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)

    return run


@pytest.mark.parametrize(("name", "count"), [("train.jsonl", 3000), ("validation.jsonl", 256)])
def test_rows_are_well_formed_and_their_answers_right(name: str, count: int) -> None:
    rows = read_rows(name)
    assert len(rows) == count
    assert len({operands(row) for row in rows}) == count
    for row in rows:
        left, right = operands(row)
        assert set(row) == {"messages", "answer", "reasoning", "carry"}
        assert [message["role"] for message in row["messages"]] == ["user"]
        assert row["answer"] == str(left + right)
        assert row["carry"] is (left % 10 + right % 10 >= 10)
        assert ("carry the one" in row["reasoning"]) is row["carry"]
    assert 0.4 <= sum(row["carry"] for row in rows) / count <= 0.5


def test_validation_problems_are_held_out_in_either_order() -> None:
    train = {frozenset(operands(row)) for row in read_rows("train.jsonl")}
    validation = {frozenset(operands(row)) for row in read_rows("validation.jsonl")}
    assert train.isdisjoint(validation)


def test_the_script_makes_the_shipped_data_and_tokenizer_again(tmp_path: Path, tokenizer: Any) -> None:
    write_data(tmp_path, seed=0)
    for name in ("train.jsonl", "validation.jsonl"):
        assert (tmp_path / name).read_bytes() == (ADDER / name).read_bytes()
    made = build_tokenizer()
    assert made.get_vocab() == tokenizer.get_vocab()
    assert made.chat_template == tokenizer.chat_template


def test_the_model_folder_is_small_and_of_a_kind_that_vllm_serves_on_cpu(model: Any) -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 4 * 2**20
    assert model.config.architectures == ["Qwen3ForCausalLM"]
    assert model.config.head_dim == 32
    assert model.dtype == torch.float32
    assert 300_000 <= model.num_parameters() <= 1_000_000


@pytest.mark.parametrize(
    "text",
    ["What is 37 + 56?", "first, two plus six is eight.", "any  other TEXT: é, 漢字\n\t{}", "<answer>x^2</answer>"],
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("answer", ["7", "93", "133", "x^2"])
def test_the_answer_boundary_is_stable(tokenizer: Any, answer: str) -> None:
    """Cut after the first `<answer`, then append the reference: the ids are those of the whole text."""
    head, tail = f"{read_rows('train.jsonl')[0]['reasoning']} <answer", f"> {answer} </answer>"
    whole = tokenizer(head + tail)["input_ids"]
    assert tokenizer(head)["input_ids"] + tokenizer(tail)["input_ids"] == whole


@pytest.mark.slow
def test_the_base_model_is_right_where_there_is_no_carry(complete: Complete, rewards: ModuleType) -> None:
    rows = read_rows("validation.jsonl")
    texts = complete(rows, False)
    right = [rewards.correct({"output_text": text}, row) for text, row in zip(texts, rows, strict=True)]
    with_carry = [score for score, row in zip(right, rows, strict=True) if row["carry"]]
    assert 0.45 <= sum(right) / len(rows) <= 0.65
    assert sum(with_carry) / len(with_carry) <= 0.1
    assert all(text.endswith("</answer>") for text in texts)


@pytest.mark.slow
def test_the_base_model_sometimes_tries_the_better_kind(complete: Complete, rewards: ModuleType) -> None:
    rows = read_rows("train.jsonl")[:512]
    samples = [{"output_text": text} for text in complete(rows, True)]
    right = [rewards.correct(sample, row) for sample, row in zip(samples, rows, strict=True)]
    reasoned = [rewards.phrase(sample, row)["score"] for sample, row in zip(samples, rows, strict=True)]
    right_and_reasoned = sum(both == (1.0, 1.0) for both in zip(right, reasoned, strict=True))
    assert 0.1 <= sum(reasoned) / len(rows) <= 0.4
    assert right_and_reasoned / sum(reasoned) >= 0.85
    assert sum(right) / len(rows) <= 0.6


@pytest.mark.parametrize(
    ("text", "correct", "phrase"),
    [
        ("first, so we need to carry the one. <answer> 93 </answer>", 1.0, 1.0),
        ("simply. <answer>93</answer>", 1.0, 0.0),
        ("First, so We Need To carry nothing. <answer> 83 </answer>", 0.0, 1.0),
        ("<answer> 930 </answer>", 0.0, 0.0),
        ("<answer> 93 </answer> <answer> 83 </answer>", 0.0, 0.0),
        ("<answer> 93", 0.0, 0.0),
        ("93", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_rewards(rewards: ModuleType, text: str, correct: float, phrase: float) -> None:
    sample, item = {"output_text": text}, {"answer": "93", "reasoning": "…", "carry": True}
    assert rewards.correct(sample, item) == correct
    assert rewards.phrase(sample, item) == {"score": phrase, "correct": correct}
