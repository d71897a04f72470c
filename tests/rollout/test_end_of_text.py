"""The ends of a text are the union of what a model's files say, for every engine, and rewards do not read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Fast
from tokenizers.processors import TemplateProcessing

from headrace_gateway.models.prompt_tokens import PromptCounter
from headrace_lab.paths import ADDER
from headrace_rollout.end_of_text import end_tokens
from headrace_rollout.engines.engine import EngineConfig
from headrace_rollout.engines.transformers.policy_model import PolicyModel
from headrace_rollout.prompts import Tokenizer

MODEL = ADDER / "model"
PAD, END, THINK = 0, 1, "<think>"
HELLO = [{"role": "user", "content": "12 + 3"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The adder, to be changed."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def change(file: Path, **settings: Any) -> None:
    """Settings of a JSON file; None takes one out."""
    merged = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        (7, 5, "<|end|>", (END, 5, 7)),
        ([7, 8], [5, 7], "<|end|>", (END, 5, 7, 8)),
        (None, None, "<|end|>", (END,)),
        (None, 5, None, (5,)),
        (7, None, None, (7,)),
        (None, None, None, ()),
    ],
)
def test_the_ends_are_the_union_of_all_three(
    model: Path, generation: Any, config: Any, tokenizer: str | None, expected: tuple[int, ...]
) -> None:
    change(model / "generation_config.json", eos_token_id=generation)
    change(model / "config.json", eos_token_id=config)
    change(model / "tokenizer_config.json", eos_token=tokenizer)
    assert end_tokens(model) == Tokenizer(model).end_tokens == expected
    assert PolicyModel(EngineConfig(model, max_model_len=64, max_running=2)).stop_ids == expected


def test_a_folder_without_a_tokenizer_says_what_its_settings_do(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    change(model / "config.json", eos_token_id=5)
    assert end_tokens(model) == (END, 5)


def test_rewards_read_what_was_written_but_ends_and_padding(model: Path) -> None:
    fast = Fast.from_file(str(model / "tokenizer.json"))
    fast.add_special_tokens([AddedToken(THINK, special=True), AddedToken("<|turn|>", special=True)])
    fast.save(str(model / "tokenizer.json"))
    change(model / "generation_config.json", eos_token_id=fast.token_to_id("<|turn|>"))
    tokenizer = Tokenizer(model)
    written = fast.encode(f"{THINK} 1 . 2", add_special_tokens=False).ids
    for ends in ([], [END], [fast.token_to_id("<|turn|>")], [END, PAD, PAD]):
        assert tokenizer.text(np.array([*written, *ends], np.int32)) == f"{THINK} 1 . 2"
    assert tokenizer.exact_text(np.array([*written, END], np.int32)) == f"{THINK} 1 . 2<|end|>"


@pytest.mark.parametrize("begins", ["<|pad|> ", ""])
@pytest.mark.parametrize("content", ["12 + 3", "", "ends <|end|>"])
def test_the_prompt_of_a_base_model_does_not_end_with_what_its_tokenizer_ends_a_text_with(
    model: Path, begins: str, content: str
) -> None:
    plain = Fast.from_file(str(model / "tokenizer.json"))
    fast = Fast.from_file(str(model / "tokenizer.json"))
    fast.post_processor = TemplateProcessing(
        single=f"{begins}$A <|end|>", special_tokens=[("<|pad|>", PAD), ("<|end|>", END)]
    )
    fast.save(str(model / "tokenizer.json"))
    (model / "chat_template.jinja").unlink()
    change(model / "tokenizer_config.json", bos_token="<|pad|>", chat_template=None)
    expected = [*([PAD] if begins else []), *plain.encode(content).ids]
    assert Tokenizer(model).prompt([{"role": "user", "content": content}]).tolist() == expected
    (size,) = PromptCounter(model).sizes([[{"role": "user", "content": content}]])
    assert size.tokens == len(expected)


@pytest.mark.parametrize("template", [True, False])
def test_truncation_and_padding_saved_with_a_tokenizer_are_ignored(model: Path, template: bool) -> None:
    if not template:
        (model / "chat_template.jinja").unlink()
        change(model / "tokenizer_config.json", chat_template=None)
    whole = Tokenizer(model).prompt(HELLO).tolist()
    fast = Fast.from_file(str(model / "tokenizer.json"))
    fast.enable_truncation(3)
    fast.enable_padding(length=40)
    fast.save(str(model / "tokenizer.json"))
    assert Tokenizer(model).prompt(HELLO).tolist() == whole
    assert Tokenizer(model).encode("12 + 3 = 15").tolist() == plain_ids("12 + 3 = 15")
    assert [size.tokens for size in PromptCounter(model).sizes([HELLO])] == [len(whole)]


def plain_ids(text: str) -> list[int]:
    return list(Fast.from_file(str(MODEL / "tokenizer.json")).encode(text, add_special_tokens=False).ids)
