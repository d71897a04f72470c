"""The gateway counts a prompt's tokens as the engine does, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from headrace_core.errors import InvalidData, InvalidRequest
from headrace_core.storage.dataset import Row, read_rows
from headrace_gateway.models.prompt_tokens import MAX_CHECKED, PromptCounter, check_prompts
from headrace_lab.paths import ADDER

TALK = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": "What is 12 + 99?"},
    {"role": "assistant", "content": "first, two plus nine … <answer> 111 </answer>"},
    {"role": "user", "content": "And ünïcödé, 数?"},
]


def test_counts_are_those_of_the_full_tokenizer() -> None:
    rows = [*read_rows(ADDER / "validation.jsonl")[:50], Row(TALK, {})]
    full = AutoTokenizer.from_pretrained(ADDER / "model")
    expected = [
        len(full.apply_chat_template(row.messages, add_generation_prompt=True, return_dict=False)) for row in rows
    ]
    sizes = list(PromptCounter(ADDER / "model").sizes([row.messages for row in rows]))
    assert [size.tokens for size in sizes] == expected
    assert all(0 < size.largest_id < len(full) for size in sizes)


def test_a_model_without_a_template_sees_the_contents(tmp_path: Path) -> None:
    shutil.copy(ADDER / "model" / "tokenizer.json", tmp_path)
    counter = PromptCounter(tmp_path)
    assert [size.tokens for size in counter.sizes([[{"role": "user", "content": "What is 3?"}]])] == [4]


def test_what_a_template_refuses_is_the_datas_fault(tmp_path: Path) -> None:
    shutil.copy(ADDER / "model" / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        list(PromptCounter(tmp_path).sizes([TALK]))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_reaches_nothing_of_python(tmp_path: Path, template: str) -> None:
    shutil.copy(ADDER / "model" / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(InvalidData, match="chat template refuses"):
        list(PromptCounter(tmp_path).sizes([TALK]))


def test_a_line_that_a_template_refuses_is_named(tmp_path: Path) -> None:
    shutil.copy(ADDER / "model" / "tokenizer.json", tmp_path)
    refusing = "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}1"
    (tmp_path / "chat_template.jinja").write_text(refusing)
    rows = [Row(TALK[1:2], {}, 1)] * 300 + [Row(TALK, {}, 302)]
    with pytest.raises(InvalidData, match=r"data\.jsonl, line 302: the model's chat template refuses .*one at a time"):
        check_prompts(tmp_path, rows, "data.jsonl", 100)


@pytest.mark.parametrize(
    ("content", "room", "vocabulary", "code"),
    [
        ("", 10, None, "prompt_empty"),
        ("1 2 3 4", 3, None, "prompt_too_long"),
        ("9", 10, 3, "prompt_unknown_token"),
    ],
)
def test_a_row_that_no_engine_can_serve_is_named(
    tmp_path: Path, content: str, room: int, vocabulary: int | None, code: str
) -> None:
    shutil.copy(ADDER / "model" / "tokenizer.json", tmp_path)
    rows = [Row([{"role": "user", "content": content}], {}, 7)]
    with pytest.raises(InvalidData, match=r"data\.jsonl, line 7: ") as refusal:
        check_prompts(tmp_path, rows, "data.jsonl", room, vocabulary)
    assert refusal.value.code == code


def test_the_longest_prompt_is_told_with_its_line(tmp_path: Path) -> None:
    shutil.copy(ADDER / "model" / "tokenizer.json", tmp_path)
    rows = [Row([{"role": "user", "content": text}], {}, line) for line, text in ((1, "1"), (3, "1 2 3"), (4, "4 5"))]
    found = check_prompts(tmp_path, rows, "data.jsonl", 100)
    assert (found.rows, found.longest.tokens > 1, found.longest.where) == (3, True, "data.jsonl, line 3")


def test_of_many_rows_the_longest_are_counted_wherever_they_are(tmp_path: Path) -> None:
    shutil.copy(ADDER / "model" / "tokenizer.json", tmp_path)
    rows = [Row([{"role": "user", "content": "1"}], {}, line) for line in range(1, MAX_CHECKED + 2000)]
    rows[-500] = Row([{"role": "user", "content": "1 2 3"}], {}, 77_777)
    assert check_prompts(tmp_path, rows, "data.jsonl", 100).longest.where == "data.jsonl, line 77777"
    with pytest.raises(InvalidData, match="line 77777"):
        check_prompts(tmp_path, rows, "data.jsonl", 2)


def test_a_model_without_a_fast_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"tokenizer\.json"):
        PromptCounter(tmp_path)


def test_the_gateway_loads_no_torch() -> None:
    program = (
        "import sys, json, pathlib, headrace_gateway.app, headrace_gateway.models.prompt_tokens as p\n"
        f"p.PromptCounter(pathlib.Path({str(ADDER / 'model')!r}))\n"
        "print(json.dumps([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=120)
    assert json.loads(done.stdout) == []
