"""The gateway renders chat templates as transformers does, with which the rollout worker makes its prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from headrace_core.errors import Damaged, InvalidRequest
from headrace_gateway.models.chat_templates import compiled, render
from headrace_gateway.models.prompt_tokens import PromptCounter
from headrace_lab.paths import ADDER

SHAPES = {file.stem: file.read_text() for file in Path(__file__).parent.glob("chat_templates/*.jinja")}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is 12 + 99?"}],
    [{"role": "system", "content": " Answer. "}, {"role": "user", "content": "Ünïcödé, 数 <b>&'\"\r\n\r\nx\n "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "c"},
    ],
    [
        {"role": "system", "content": "s /no_think"},
        {"role": "user", "content": "a", "name": "Ann", "metadata": "m"},
        {
            "role": "assistant",
            "content": "b",
            "reasoning_content": "r",
            "tool_calls": [{"function": {"name": "f", "arguments": {"ü": 1}}}],
        },
        {"role": "tool", "content": "é"},
        {"role": "user", "content": "c"},
    ],
    [{"role": "user", "content": "a"}, {"role": "user", "content": ""}],
]


def transformers_text(source: str, messages: list[dict[str, Any]]) -> str:
    texts, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, **SPECIAL)
    return str(texts[0])


def said(write: Any) -> str:
    """The text, or how the template refused."""
    try:
        return str(write())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_a_family_renders_as_in_transformers(family: str) -> None:
    source, written = SHAPES[family], 0
    for messages in CONVERSATIONS:
        ours = said(lambda messages=messages: render(compiled(source), messages, SPECIAL))
        assert ours == said(lambda messages=messages: transformers_text(source, messages))
        written += "Error: " not in ours[:20]
    assert written >= 2  # the shape is one that takes conversations, not one that refuses them all


def test_the_shapes_are_of_thirty_families() -> None:
    assert len(set(SHAPES.values())) >= 30


def model(folder: Path, template: Any = None, **settings: Any) -> Path:
    """The adder's model with another template and settings of its tokenizer."""
    shutil.copytree(ADDER / "model", folder, dirs_exist_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config.pop("chat_template", None)
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))
    return folder


ALL_TOKENS = (
    "{% for t in [bos_token, eos_token, unk_token, pad_token, sep_token, mask_token, image_token, eot_token] %}"
    "[{{ t }}]{% endfor %}{{ bos_token is defined }}{{ add_bos_token is defined }}{{ messages[0].content }}"
)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bos_token": "<b>", "add_bos_token": True, "eot_token": "<eot>"},
        {"bos_token": None},
        {"bos_token": {"__type": "AddedToken", "content": "<b>", "lstrip": True}},
        {"extra_special_tokens": {"image_token": "<image>"}},
        {"additional_special_tokens": ["<one>", "<two>"]},
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "GPTNeoXTokenizerFast"},
    ],
)
def test_special_tokens_are_those_of_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = model(tmp_path, ALL_TOKENS, **settings)
    messages = CONVERSATIONS[0]
    full = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert PromptCounter(folder).text(messages) == full


def test_legacy_special_tokens_are_read(tmp_path: Path) -> None:
    folder = model(tmp_path, ALL_TOKENS)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<legacy>", "sep_token": None}))
    full = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        CONVERSATIONS[0], add_generation_prompt=True, tokenize=False
    )
    assert "<legacy>" in full
    assert PromptCounter(folder).text(CONVERSATIONS[0]) == full


def test_tools_that_nobody_gave_are_none(tmp_path: Path) -> None:
    """A template that writes a page about tools unless they are none counted 222 tokens where 20 are right."""
    folder = model(tmp_path, "{% if tools is not none %}{{ '1 2 3 ' * 100 }}{% endif %}{{ messages[0].content }}")
    messages = CONVERSATIONS[0]
    full = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert [size.tokens for size in PromptCounter(folder).sizes([messages])] == [len(full)]
    assert len(full) < 20


def test_the_default_of_several_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    assert PromptCounter(model(tmp_path, named)).text(CONVERSATIONS[0]) == "What is 12 + 99?"
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("of documents")
    (tmp_path / "chat_template.jinja").write_text("the file's: {{ messages[0].content }}")
    assert PromptCounter(tmp_path).text(CONVERSATIONS[0]) == "the file's: What is 12 + 99?"
    full = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(CONVERSATIONS[0], tokenize=False)
    assert full == "the file's: What is 12 + 99?"


def test_named_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path, [{"name": "tool_use", "template": "t"}, {"name": "rag", "template": "r"}])
    with pytest.raises(InvalidRequest, match=r"named chat templates \(rag, tool_use\).*chat_template\.jinja"):
        PromptCounter(folder)
    folder = model(tmp_path, "{{ messages }}")  # which the folder of others overrides, as in transformers
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("r")
    with pytest.raises(InvalidRequest, match=r"named chat templates \(rag\)"):
        PromptCounter(folder)


def test_a_syntax_error_names_the_templates_line(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"the chat template of .*, line 2: "):
        PromptCounter(model(tmp_path, "{{ bos_token }}\n{% if %}"))


def test_saved_truncation_and_padding_are_ignored(tmp_path: Path) -> None:
    folder = model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    conversations = [CONVERSATIONS[0], [{"role": "user", "content": "1"}]]
    full = AutoTokenizer.from_pretrained(folder)
    expected = [len(full(talk[0]["content"])["input_ids"]) for talk in conversations]
    assert [size.tokens for size in PromptCounter(folder).sizes(conversations)] == expected
