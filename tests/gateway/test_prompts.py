"""The gateway counts a prompt's tokens as the engine does, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from headrace_core.data import Row, read_rows
from headrace_core.errors import InvalidData, InvalidRequest
from headrace_gateway.prompts import PromptCounter

from .conftest import ADDER

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
    assert PromptCounter(ADDER / "model").count(rows) == expected


def test_a_model_without_a_template_sees_the_contents(tmp_path: Path) -> None:
    shutil.copy(ADDER / "model" / "tokenizer.json", tmp_path)
    counter = PromptCounter(tmp_path)
    assert counter.count([Row([{"role": "user", "content": "What is 3?"}], {})]) == [4]


def test_what_a_template_refuses_is_the_datas_fault(tmp_path: Path) -> None:
    shutil.copy(ADDER / "model" / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        PromptCounter(tmp_path).count([Row(TALK, {})])


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
        PromptCounter(tmp_path).count([Row(TALK, {})])


def test_a_model_without_a_fast_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"tokenizer\.json"):
        PromptCounter(tmp_path)


def test_the_gateway_loads_no_torch() -> None:
    program = (
        "import sys, json, pathlib, headrace_gateway.app, headrace_gateway.prompts as p\n"
        f"p.PromptCounter(pathlib.Path({str(ADDER / 'model')!r}))\n"
        "print(json.dumps([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=120)
    assert json.loads(done.stdout) == []
