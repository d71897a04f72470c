"""Counts the tokens of prompts at submission, without torch, by the model's own tokenizer.json and chat template.

The rollout worker counts again with the full tokenizer before it generates. Tests check that both agree.

    PromptCounter(model).sizes(conversations)      plain values in and out, no state but the model's files: can run in
                                                   any process
    check_prompts(model, rows, name, room, …)      the same for an uploaded file, with file names and lines in errors

A chat template may use much memory or take long (`chat_templates`), so the gateway counts in a process with limits:
`prompt_process`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from headrace_core.errors import Damaged, InvalidData, InvalidRequest
from headrace_core.protocols.prompt_ids import strip_end_tokens
from headrace_core.storage.dataset import Row, check_prompt, check_prompt_bytes

from .chat_templates import load_template, render, special_tokens
from .model_folder import RESTORE, json_of

MAX_CHECKED = 10_000
"""First rows that are counted at submission, beside `MAX_LONG_ROWS_CHECKED` others. The rollout worker counts all rows
when it starts."""
MAX_LONG_ROWS_CHECKED = 1_000
"""Rows beyond the first `MAX_CHECKED` that are counted too: those with the most bytes of text."""
ENCODED_AT_ONCE = 256
"""Most conversations that are rendered and encoded together, which limits the memory."""
ENCODED_BYTES = 1024 * 1024
"""Most bytes of text that are rendered and encoded together, unless a single conversation has more."""


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Size of one conversation, including the generation prompt."""

    tokens: int
    largest_id: int
    """Largest token id; -1 without tokens."""


@dataclass(frozen=True, slots=True)
class LongestPrompt:
    """The longest of the counted prompts; `where` names its file and line."""

    tokens: int
    where: str


class PromptRefused(InvalidData):
    """The chat template raised an error for a conversation; `index`: its position among those given."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class PromptCounter:
    """Counts tokens as the engine will see them. Raises `InvalidRequest` for a model without tokenizer.json, `Damaged`
    if a file of the model cannot be read."""

    def __init__(self, model: Path) -> None:
        tokenizer = model / "tokenizer.json"
        if not tokenizer.is_file():
            raise InvalidRequest(
                f"{model} holds no tokenizer.json: save the model's fast tokenizer there", param="model"
            )
        self._tokenizer = _tokenizer(tokenizer)
        config = model / "tokenizer_config.json"
        settings = json_of(config) if config.is_file() else {}
        self._template = load_template(model, settings)
        self._special = special_tokens(model, settings)
        self._begins = self._tokenizer.token_to_id(self._special.get("bos_token", ""))

    def sizes(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[PromptSize]:
        """The sizes of the conversations, in order. Raises `PromptRefused` if the template raises an error."""
        for first in range(0, len(conversations), ENCODED_AT_ONCE):
            some = conversations[first : first + ENCODED_AT_ONCE]
            texts = [self.text(messages, index) for index, messages in enumerate(some, start=first)]
            for ids in self._encoded(texts):
                yield PromptSize(len(ids), max(ids, default=-1))

    def ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of one conversation. Raises `PromptRefused` if the template raises an error."""
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
        """The model's tokenizer.json, without truncation and padding."""
        return str(self._tokenizer.to_str())

    def text(self, messages: Sequence[Mapping[str, Any]], index: int = 0) -> str:
        """The rendered text of a conversation. Raises `PromptRefused` with `index`."""
        if self._template is None:
            return "\n".join(m["content"] for m in messages)
        try:
            return render(self._template, messages, self._special)
        except MemoryError:  # not the fault of these messages
            raise
        except Exception as error:  # a template is a program: it may fail in any way
            reason = str(error) or type(error).__name__
            raise PromptRefused(f"the model's chat template refuses the messages: {reason}", index) from error


@dataclass(frozen=True, slots=True)
class Prompts:
    """The result of `check_prompts`, for a file in which all rows are usable."""

    rows: int
    longest: LongestPrompt


def check_prompts(model: Path, rows: Iterable[Row], name: str, room: int, vocabulary: int | None = None) -> Prompts:
    """Count a file's rows, and find its longest prompt (in a large file, among the first rows and those with most
    text).

    Holds one batch of rows at a time. Raises an `InvalidData` that names the line of a prompt without tokens, with more
    than `room` tokens, with an id outside the model's `vocabulary`, or for which the chat template raises an error.
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
"""(bytes of the row's message contents, the row)."""


def _sized(rows: Iterable[Row], name: str, room: int, count: Iterator[int]) -> Iterator[_Sized]:
    """The rows with their sizes; advances `count` for each. Raises `InvalidData` for a row with more bytes than `room`
    tokens can have."""
    for row in rows:
        next(count)
        yield check_prompt_bytes(f"{name}, line {row.line}", row.messages, room), Row(row.messages, {}, row.line)


def _to_be_counted(rows: Iterator[_Sized]) -> Iterator[_Sized]:
    yield from itertools.islice(rows, MAX_CHECKED)
    yield from heapq.nlargest(MAX_LONG_ROWS_CHECKED, rows, key=lambda sized: sized[0])


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


def _tokenizer(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise Damaged(f"{file} is no tokenizer: {error}: {RESTORE}", param="model") from error
    # Truncation and padding saved in the file belong to a past batch, not to the tokenizer; transformers ignores them
    # too.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
