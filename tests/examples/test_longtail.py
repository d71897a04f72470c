"""The long-tailed task: its texts and data are right, its base model's lengths have the tail, and it can be taught."""

from __future__ import annotations

import json
import random
import statistics
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.longtail import longtail_problems as parts
from headrace_lab.paths import ADDER, LONGTAIL, load_module

MODEL = LONGTAIL / "model"
MAX_TOKENS = 256
Row = dict[str, Any]


def read_rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (LONGTAIL / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def correct() -> Any:
    return load_module(ADDER / "reward.py").correct


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def complete(model: Any, tokenizer: Any, rows: list[Row], **choice: Any) -> list[list[int]]:
    """Token ids of a completion of each row, with its end token. All prompts have the same number of tokens."""
    prompts = [
        tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=False) for row in rows
    ]
    ids = torch.tensor(prompts)
    torch.manual_seed(0)
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, **choice)
    return [[t for t in row if t != tokenizer.pad_token_id] for row in out[:, ids.shape[1] :].tolist()]


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_the_problems_are_the_adder_s(name: str) -> None:
    assert (LONGTAIL / name).read_bytes() == (ADDER / name).read_bytes()


def test_a_demonstration_is_the_adder_s_with_checks_before_its_answer(tokenizer: Any) -> None:
    problem, rng = parts.Problem(37, 56), random.Random(0)
    texts = [parts.long_demonstration(problem, rng) for _ in range(4000)]
    assert any(
        " three plus five plus one is nine. check one, seven plus six ends in three, nine tens, fine. "
        "check two, seven plus six ends in three, nine tens, fine. <answer> 93 </answer>" in text
        for text in texts
    )
    assert any(text.endswith(" is eight. <answer> 83 </answer>") for text in texts)
    lengths = [len(tokenizer(text)["input_ids"]) + 1 for text in texts]
    assert min(lengths) == 22
    assert max(lengths) == 31 + parts.CHECK_TOKENS * parts.MAX_CHECKS <= parts.MAX_TOKENS


def test_the_number_of_checks_has_the_tail_that_it_says() -> None:
    rng, count = random.Random(0), 40_000
    checks = [parts.number_of_checks(rng) for _ in range(count)]
    for k in range(1, parts.MAX_CHECKS + 1):
        # Four standard deviations of a share.
        assert sum(n >= k for n in checks) / count == pytest.approx(parts.CHECKED / (1 + k), abs=4 * 0.5 / count**0.5)
    assert (min(checks), max(checks)) == (0, parts.MAX_CHECKS)


def test_the_tokenizer_keeps_its_words_and_any_other_text(tokenizer: Any) -> None:
    assert len(tokenizer(parts.check(parts.Problem(37, 56), "93", 14))["input_ids"]) == parts.CHECK_TOKENS
    for text in ("What is 37 + 56?", " check one, nine tens, fine.", "any  other TEXT: é, 漢字\n\t{}"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_model_is_of_the_adder_s_class(model: Any) -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 4 * 2**20
    assert model.config.architectures == ["Qwen3ForCausalLM"]
    assert model.config.head_dim == 32
    assert model.dtype == torch.float32
    assert 410_000 <= model.num_parameters() <= 450_000


@pytest.mark.slow
def test_sampled_lengths_have_a_heavy_tail(model: Any, tokenizer: Any, correct: Any) -> None:
    rows = read_rows("train.jsonl")[:256]
    ids = complete(model, tokenizer, rows, do_sample=True, temperature=1.0, top_k=0)
    lengths = [len(tokens) for tokens in ids]
    assert 45 <= statistics.mean(lengths) <= 80
    assert statistics.median(lengths) <= 45
    assert sum(length > 200 for length in lengths) / len(lengths) >= 0.02
    assert max(lengths) <= MAX_TOKENS
    # What is cut off has no end token: a tail that max_tokens makes would not be the model's.
    assert sum(tokens[-1] != tokenizer.eos_token_id for tokens in ids) / len(ids) <= 0.05
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    right = [correct({"output_text": text}, row) for text, row in zip(texts, rows, strict=True)]
    assert 0.3 <= sum(right) / len(rows) <= 0.6


@pytest.mark.slow
def test_greedy_accuracy_leaves_room_to_learn(model: Any, tokenizer: Any, correct: Any) -> None:
    rows = read_rows("validation.jsonl")
    texts = tokenizer.batch_decode(complete(model, tokenizer, rows, do_sample=False), skip_special_tokens=True)
    right = [correct({"output_text": text}, row) for text, row in zip(texts, rows, strict=True)]
    with_carry = [score for score, row in zip(right, rows, strict=True) if row["carry"]]
    assert 0.3 <= sum(right) / len(rows) <= 0.6
    assert sum(with_carry) / len(with_carry) <= 0.2
