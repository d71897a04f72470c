"""A model's chat template: which of its files has it, and how it is compiled and rendered, without torch.

Tests compare the rendered text with that of transformers, for templates like those of public model families.

A template is a program by the model's author. It runs in Jinja's sandbox, but may fail, use much memory or take long:
whoever renders one limits the process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace_core.errors import Damaged, InvalidRequest

from .model_folder import RESTORE, json_of, text_of

MORE_TEMPLATES = "additional_chat_templates"
"""Folder of a model's chat templates beside the default one."""
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_CLASS_TOKENS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "GPT2Tokenizer": _GPT2,
    "GPTNeoXTokenizer": {**_GPT2, "pad_token": "<|padding|>"},
    "Qwen2Tokenizer": {
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
}
"""Special tokens of the tokenizer classes of common families, where tokenizer_config.json leaves them out."""


def load_template(model: Path, config: dict[str, Any]) -> Template | None:
    """The model's default chat template; None if it has none. `config`: its tokenizer_config.json. Raises `Damaged`,
    and `InvalidRequest` where only templates with other names are there."""
    source = _template_source(model, config)
    if source is None:
        return None
    if not isinstance(source, str):
        raise Damaged(f"the chat template of {model} is no text: {RESTORE}", param="model")
    try:
        return compiled(source)
    except (TemplateError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise Damaged(f"the chat template of {model} is none{line}: {error}: {RESTORE}", param="model") from error


def special_tokens(model: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a template can use by name (`bos_token`, …), as in transformers."""
    tokens: dict[str, Any] = {}
    class_name = config.get("tokenizer_class")
    if isinstance(class_name, str):
        tokens |= _CLASS_TOKENS.get(class_name.removesuffix("Fast"), {})
    tokens |= {name: token for name, token in config.items() if name.endswith("_token")}
    for more in (config.get("model_specific_special_tokens"), config.get("extra_special_tokens")):
        tokens |= more if isinstance(more, dict) else {}
    legacy = model / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and legacy.is_file():
        tokens |= {name: token for name, token in json_of(legacy).items() if name in _NAMED_TOKENS}
    texts = {name: token["content"] if _is_added(token) else token for name, token in tokens.items()}
    return {name: token for name, token in texts.items() if isinstance(token, str)}


def render(template: Template, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str]) -> str:
    """Render the messages like transformers' `apply_chat_template`, with the generation prompt."""
    # Passed as None rather than omitted, because templates test `tools is not none`.
    return template.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **special)


def compiled(source: str) -> Template:
    """Compile a chat template. Raises Jinja's `TemplateError`, or `RecursionError`."""
    return _environment().from_string(source)


def _template_source(model: Path, config: dict[str, Any]) -> Any:
    """The default chat template. A template file takes precedence over tokenizer_config.json, as in transformers."""
    source = config.get("chat_template")
    if isinstance(source, list):  # several named templates
        source = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
    file, more = model / "chat_template.jinja", sorted((model / MORE_TEMPLATES).glob("*.jinja"))
    if more:
        source = {path.name.removesuffix(".jinja"): text_of(path) for path in more}
    if file.is_file():
        source = text_of(file)
    if not isinstance(source, dict):
        return source
    if "default" not in source:
        names = ", ".join(sorted(map(str, source))) or "none"
        raise InvalidRequest(
            f"{model} has named chat templates ({names}), and none of them is the default: save the one that prompts "
            "are to have as chat_template.jinja",
            param="model",
        )
    return source["default"]


def _is_added(token: Any) -> bool:
    """Whether this is a token with settings (`lstrip`, …), in the tokenizers library's format."""
    return isinstance(token, dict) and "content" in token


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`, which marks the assistant's text for masks and renders nothing
    itself."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own form)

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse a block with its own scope, like transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    @staticmethod
    def _written(caller: Any) -> Any:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    """The Jinja environment that Hugging Face's chat templates expect."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
