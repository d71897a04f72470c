"""How many tokens a prompt has, at submission and without torch: the model's own tokenizer.json and chat template.

The rollout worker counts again with the full tokenizer before it generates; a test holds both counts equal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from headrace_core.data import Row
from headrace_core.errors import Damaged, InvalidData, InvalidRequest

from .model_folder import RESTORE, json_of, text_of

MOST_CHECKED = 10_000
"""Rows counted at submission; the rest is checked by the rollout worker at its start."""


class PromptCounter:
    """Counts tokens as the engine will see them. Raises `InvalidRequest` for a model without tokenizer.json, `Damaged`
    for one whose files cannot be read."""

    def __init__(self, model: Path) -> None:
        tokenizer = model / "tokenizer.json"
        if not tokenizer.is_file():
            raise InvalidRequest(
                f"{model} holds no tokenizer.json: save the model's fast tokenizer there", param="model"
            )
        self._tokenizer = _tokenizer(tokenizer)
        config = model / "tokenizer_config.json"
        self._names = json_of(config) if config.is_file() else {}
        source = _template_source(model, self._names)
        self._template = None if source is None else _template(model, source)

    def count(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row's prompt, generation prompt included. Raises `InvalidData` where the template does."""
        with_special = self._template is None  # a chat template writes its special tokens itself
        texts = [self._text(row) for row in rows]
        return [len(e.ids) for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=with_special)]

    def _text(self, row: Row) -> str:
        if self._template is None:
            return "\n".join(m["content"] for m in row.messages)
        special = {k: _content(v) for k, v in self._names.items() if k.endswith("_token") and v is not None}
        try:
            return self._template.render(messages=row.messages, add_generation_prompt=True, **special)
        except Exception as error:  # a template is a program: it may fail in any way
            raise InvalidData(f"the model's chat template refuses the messages: {error}", param="messages") from error


def longest_prompt(model: Path, path: Path, rows: Sequence[Row], name: str, most: int) -> int:
    """Tokens of the longest of the first `MOST_CHECKED` prompts. Raises `InvalidData`: the line of one above `most`."""
    counts = PromptCounter(model).count(rows[:MOST_CHECKED])
    for row, tokens in enumerate(counts):
        if tokens > most:
            raise InvalidData(
                f"{name}, line {_line_of(path, row)}: the prompt has {tokens} tokens, and only {most} fit beside "
                "max_tokens in the context: shorten it, lower max_tokens, or raise max_context if the model allows",
                code="prompt_too_long",
            )
    return max(counts)


def _line_of(path: Path, row: int) -> int:
    """The line of row number `row`: empty lines are not rows."""
    with path.open("rb") as lines:
        filled = (number for number, line in enumerate(lines, start=1) if line.strip())
        return next(number for index, number in enumerate(filled) if index == row)


def _tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise Damaged(f"{file} is no tokenizer: {error}: {RESTORE}", param="model") from error


def _template(model: Path, source: Any) -> Template:
    if not isinstance(source, str):
        raise Damaged(f"the chat template of {model} is no text: {RESTORE}", param="model")
    try:
        return _environment().from_string(source)
    except (TemplateError, RecursionError) as error:
        raise Damaged(f"the chat template of {model} is none: {error}: {RESTORE}", param="model") from error


def _template_source(model: Path, config: dict[str, Any]) -> Any:
    file = model / "chat_template.jinja"
    if file.is_file():
        return text_of(file)
    source = config.get("chat_template")
    if isinstance(source, list):  # several named templates
        named = [t for t in source if isinstance(t, dict)]
        source = next((t.get("template") for t in named if t.get("name") == "default"), None)
    return source


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face's chat templates expect of Jinja."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
