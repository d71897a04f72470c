"""How many tokens a prompt has, at submission and without torch: the model's own tokenizer.json and chat template.

The rollout worker counts again with the full tokenizer before it generates; tests hold both equal: rendering to that of
transformers, over templates in the shapes of public model families.

    PromptCounter(model).sizes(conversations)      plain values in and out, no state but the model's files: what one
                                                   conversation asks for can be computed in any process
    check_prompts(model, rows, name, room, …)      the same with names and lines, for a file that was uploaded

A template is a program of the model's author: it runs in Jinja's sandbox, and may fail, grow or take long in any way.
So the gateway has it run in a process of its own, with limits: `prompt_process`.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from headrace_core.errors import Damaged, InvalidData, InvalidRequest
from headrace_core.protocols.prompt_ids import strip_end_tokens
from headrace_core.storage.dataset import Row, check_prompt, check_prompt_bytes

from .model_folder import RESTORE, json_of, text_of

MOST_CHECKED = 10_000
"""Rows counted at submission, beside `LONGEST_CHECKED` of the others; all are by the rollout worker at its start."""
LONGEST_CHECKED = 1_000
"""Rows beyond the first `MOST_CHECKED` that are counted too: those with the most bytes of text."""
ENCODED_AT_ONCE = 256
"""Conversations rendered and encoded together: a bound on the memory that takes."""
ENCODED_BYTES = 1024 * 1024
"""The same in bytes, unless one conversation has more."""
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


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Of one conversation, the generation prompt included."""

    tokens: int
    largest_id: int
    """-1 where there are no tokens."""


@dataclass(frozen=True, slots=True)
class LongestPrompt:
    """Of those counted; `where` names file and line."""

    tokens: int
    where: str


class PromptRefused(InvalidData):
    """The chat template refuses a conversation; `index` says which of those that were given."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


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
        settings = json_of(config) if config.is_file() else {}
        source = _template_source(model, settings)
        self._template = None if source is None else _compiled(model, source)
        self._special = _special_tokens(model, settings)
        self._begins = self._tokenizer.token_to_id(self._special.get("bos_token", ""))

    def sizes(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[PromptSize]:
        """One after the other, in order. Raises `PromptRefused` where the template does."""
        for first in range(0, len(conversations), ENCODED_AT_ONCE):
            some = conversations[first : first + ENCODED_AT_ONCE]
            texts = [self.text(messages, index) for index, messages in enumerate(some, start=first)]
            for ids in self._encoded(texts):
                yield PromptSize(len(ids), max(ids, default=-1))

    def ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of one conversation. Raises `PromptRefused` where the template does."""
        (ids,) = self._encoded([self.text(messages)])
        return ids

    def _encoded(self, texts: list[str]) -> Iterator[list[int]]:
        with_special = self._template is None  # a chat template writes its special tokens itself
        for encoded in self._tokenizer.encode_batch_fast(texts, add_special_tokens=with_special):
            yield (
                strip_end_tokens(encoded.ids, encoded.special_tokens_mask, self._begins)
                if with_special
                else encoded.ids
            )

    def tokenizer_json(self) -> str:
        """As the model's tokenizer.json, without truncation and padding."""
        return str(self._tokenizer.to_str())

    def text(self, messages: Sequence[Mapping[str, Any]], index: int = 0) -> str:
        """A conversation as the model reads it. Raises `PromptRefused`, which carries `index`."""
        if self._template is None:
            return "\n".join(m["content"] for m in messages)
        try:
            return render(self._template, messages, self._special)
        except MemoryError:  # no refusal of these messages
            raise
        except Exception as error:  # a template is a program: it may fail in any way
            told = str(error) or type(error).__name__
            raise PromptRefused(f"the model's chat template refuses the messages: {told}", index) from error


@dataclass(frozen=True, slots=True)
class Prompts:
    """Of a file whose rows can all be used."""

    rows: int
    longest: LongestPrompt


def check_prompts(model: Path, rows: Iterable[Row], name: str, room: int, vocabulary: int | None = None) -> Prompts:
    """How many rows a file has, and their longest prompt (of many: of the first, and of those with the most text).

    Holds a batch of rows at a time. Raises `InvalidData` with the line of one that has no tokens, more than `room`, an
    id that is none of the model's `vocabulary`, or that the chat template refuses.
    """
    counter, longest, count = PromptCounter(model), LongestPrompt(0, name), itertools.count()
    counted = _to_be_counted(_sized(rows, name, room, count))
    for batch in _batches(counted):
        try:
            for row, size in zip(batch, counter.sizes([row.messages for row in batch]), strict=True):
                where = f"{name}, line {row.line}"
                check_prompt(where, size.tokens, size.largest_id, room, vocabulary)
                if size.tokens > longest.tokens:
                    longest = LongestPrompt(size.tokens, where)
        except PromptRefused as error:
            raise InvalidData(f"{name}, line {batch[error.index].line}: {error.message}") from error
    return Prompts(next(count), longest)


_Sized = tuple[int, Row]
"""(bytes of its messages' contents, a row)."""


def _sized(rows: Iterable[Row], name: str, room: int, count: Iterator[int]) -> Iterator[_Sized]:
    """Moves `count` on with each. Raises `InvalidData` for one with more bytes than `room` tokens can be."""
    for row in rows:
        next(count)
        yield check_prompt_bytes(f"{name}, line {row.line}", row.messages, room), Row(row.messages, {}, row.line)


def _to_be_counted(rows: Iterator[_Sized]) -> Iterator[_Sized]:
    yield from itertools.islice(rows, MOST_CHECKED)
    yield from heapq.nlargest(LONGEST_CHECKED, rows, key=lambda sized: sized[0])


def _batches(rows: Iterable[_Sized]) -> Iterator[list[Row]]:
    """Rows that are rendered and encoded together."""
    batch: list[Row] = []
    held = 0
    for size, row in rows:
        batch.append(row)
        held += size
        if len(batch) == ENCODED_AT_ONCE or held > ENCODED_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def render(template: Template, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str]) -> str:
    """What transformers' `apply_chat_template` makes of the messages, with the generation prompt."""
    # Given as None, not left out: templates ask `tools is not none`.
    return template.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **special)


def compiled(source: str) -> Template:
    """Raises Jinja's `TemplateError`, or `RecursionError`."""
    return _environment().from_string(source)


def _tokenizer(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise Damaged(f"{file} is no tokenizer: {error}: {RESTORE}", param="model") from error
    # Saved with it, they are of somebody's batches, and no part of the tokenizer: transformers ignores them, too.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _compiled(model: Path, source: Any) -> Template:
    if not isinstance(source, str):
        raise Damaged(f"the chat template of {model} is no text: {RESTORE}", param="model")
    try:
        return compiled(source)
    except (TemplateError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise Damaged(f"the chat template of {model} is none{line}: {error}: {RESTORE}", param="model") from error


def _template_source(model: Path, config: dict[str, Any]) -> Any:
    """The default one. Files of their own come before what tokenizer_config.json holds, as in transformers."""
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


def _special_tokens(model: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """What a template knows by name: `bos_token`, …; as transformers gives them to it."""
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
    found = {name: token["content"] if _is_added(token) else token for name, token in tokens.items()}
    return {name: token for name, token in found.items() if isinstance(token, str)}


def _is_added(token: Any) -> bool:
    """Whether it is a token with its settings (`lstrip`, …), as the tokenizers library saves one."""
    return isinstance(token, dict) and "content" in token


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks what the assistant wrote, for masks; it writes nothing itself."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own form)

    def parse(self, parser: Parser) -> nodes.Node:
        """A block with a scope of its own, as transformers parses it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    @staticmethod
    def _written(caller: Any) -> Any:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face's chat templates expect of Jinja."""

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
