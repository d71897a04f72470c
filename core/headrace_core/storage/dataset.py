"""Training and validation data: JSONL with `messages`, the last one from the user. Rewards see the whole row as `item`.

An invalid line raises `InvalidData`, which names it.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InvalidData
from ..redis_access.json_records import UNREADABLE

TASK_LIBRARIES = ("reasoning_gym", "verifiers")
"""Libraries that make rows: `reasoning_gym:chain_sum?size=1000` refers to such rows; see `headrace_rewards.tasks`."""

_MAGIC = (
    (b"\x1f\x8b", "compressed with gzip: decompress it (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: decompress it (unzstd)"),
    (b"BZh", "compressed with bzip2: decompress it (bunzip2)"),
    (b"\xfd7zXZ", "compressed with xz: decompress it (unxz)"),
    (b"PK\x03\x04", "a ZIP archive or a workbook of Excel: take the rows out of it"),
    (b"PAR1", "a Parquet file: convert its rows (datasets: Dataset.from_parquet(…).to_json(…))"),
    (b"ARROW1", "an Arrow file: convert its rows (datasets: Dataset.from_file(…).to_json(…))"),
    (b"\xef\xbb\xbf", "UTF-8 with a byte-order mark at its start: save it without"),
    (b"\xff\xfe", "UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16: save it as UTF-8"),
)
"""First bytes of files in other formats, with a description and the remedy."""
_SNIFFED_BYTES = 4096
"""How many bytes of a file are read to detect its format."""
MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_BYTES_PER_TOKEN = 64
"""Of a prompt, on average. Text has about four bytes a token; no tokenizer in use comes near this limit."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""Escaped, as other languages' libraries write half of a character that was cut."""
_decoder = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a dataset: a prompt, and the data that graders use."""

    messages: list[dict[str, Any]]
    item: dict[str, Any]
    """The complete row, `messages` included, as rewards see it."""
    line: int = 0
    """Line of the file, from 1; 0: not from a file."""

    @classmethod
    def of(cls, item: dict[str, Any], line: int = 0) -> Row:
        """A row from an item of any form: of invalid or missing `messages` (in a grader check) it has none."""
        messages = item.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            messages = []
        return cls(messages, item, line)


def names_task(reference: str) -> bool:
    """Whether `reference` names rows to be made by a task library, not a file."""
    return reference.partition(":")[0] in TASK_LIBRARIES and ":" in reference


def read_rows(path: Path, name: str | None = None, sha256: str | None = None) -> list[Row]:
    """All rows of a JSONL file; empty lines are skipped. `name` stands for the file in errors.

    Raises `InvalidData` for an invalid line, and if the file's SHA-256 is not `sha256`: a job must not continue with
    other rows than it began with.
    """
    return list(each_row(path, name, sha256))


def each_row(path: Path, name: str | None = None, sha256: str | None = None) -> Iterator[Row]:
    """`read_rows`, with one row in memory at a time."""
    name = name or path.name
    has_rows = False
    try:
        with path.open("rb") as lines:
            if sha256 is not None and hashlib.file_digest(lines, "sha256").hexdigest() != sha256:
                raise InvalidData(f"{name} is not what was uploaded: {path} changed on the disk; upload it again")
            lines.seek(0)
            if (format := _other_format(lines.read(_SNIFFED_BYTES))) is not None:
                raise InvalidData(f"{name} is {format}; write UTF-8 text with one JSON object on each line (JSONL)")
            lines.seek(0)
            for number in itertools.count(1):
                line = lines.readline(MAX_LINE_BYTES + 1)
                if len(line) > MAX_LINE_BYTES:
                    raise InvalidData(f"{name}, line {number}: more than {MAX_LINE_BYTES} bytes; shorten the row")
                if line.strip():
                    has_rows = True
                    yield _row(line, name, number)
                elif not line:
                    break
    except OSError as error:
        raise InvalidData(f"{name} cannot be read: {path}: {error.strerror}; upload it again") from error
    if not has_rows:
        raise InvalidData(f"{name} holds no rows; write one JSON object with `messages` on each line")


def check_prompt_bytes(where: str, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> int:
    """Returns the size of the contents in bytes. Raises `InvalidData` if they must be more than `max_tokens` tokens.

    It is a check before tokenising, which takes some 200 bytes of memory for each byte of text.
    """
    size = sum(len(m["content"].encode(errors="replace")) for m in messages)
    if size > (max_bytes := MAX_BYTES_PER_TOKEN * max(max_tokens, 1)):
        raise InvalidData(
            f"{where}: the prompt has {size} bytes, and {max_tokens} tokens, which fit beside max_tokens in the "
            f"context, are {max_bytes} bytes at most: shorten it, lower max_tokens, or raise max_context if the model "
            "allows",
            code="prompt_too_long",
        )
    return size


def check_prompt(where: str, tokens: int, largest_id: int, max_tokens: int, vocabulary: int | None) -> None:
    """Raises `InvalidData` for a prompt that no engine can serve: without tokens, with more than `max_tokens`, or with
    a token id beyond the model's embeddings (`vocabulary` of them; None: unknown). `where` names file and line."""
    if tokens < 1:
        raise InvalidData(
            f"{where}: the prompt has no tokens: its messages are empty, and this model begins a text with none",
            code="prompt_empty",
        )
    if tokens > max_tokens:
        raise InvalidData(
            f"{where}: the prompt has {tokens} tokens, and only {max_tokens} fit beside max_tokens in the context: "
            "shorten it, lower max_tokens, or raise max_context if the model allows",
            code="prompt_too_long",
        )
    if vocabulary is not None and largest_id >= vocabulary:
        raise InvalidData(
            f"{where}: the prompt has the token id {largest_id}, and the model knows ids 0 … {vocabulary - 1}: the "
            "tokenizer holds more tokens than the model has embeddings; leave those tokens out, or resize the model",
            code="prompt_unknown_token",
        )


def _other_format(start: bytes) -> str | None:
    """What a file that begins with `start` is, with the remedy; None if it may be JSONL."""
    for magic, description in _MAGIC:
        if start.startswith(magic):
            return description
    text = start.lstrip()
    if b"\0" in start:
        return "no text, or UTF-16: save it as UTF-8"
    if text.startswith(b"[") and text[1:].lstrip().startswith(b"{"):
        return "one JSON array: write each of its objects on a line of its own (jq -c '.[]')"
    line = text.split(b"\n")[0].rstrip()
    if line == b"{":
        return "JSON spread over several lines: write each object on one line (jq -c .)"
    if text and not text.startswith((b"{", b"[", b'"')) and (b"," in line or b"\t" in line or b";" in line):
        return "text with separators, CSV perhaps: write each of its lines as a JSON object"
    return None


def _check_content(where: str, message: Any) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidData(f"{where}: each message needs a `role`, which is text, and a text `content`")
    content = message.get("content")
    if isinstance(content, str):
        return
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        kinds = ", ".join(sorted({str(part.get("type"))[:30] for part in content}))
        problem = f"is a list of parts ({kinds}); write the text of its parts as one string: only text is trained on"
    elif "content" not in message:
        problem = "is missing; write a string, which may be empty"
    else:
        kind = "null" if content is None else f"of type {type(content).__name__}"
        problem = f"is {kind}; write a string, which may be empty"
    raise InvalidData(f"{where}: the `content` of a message of role {message['role'][:30]!r} {problem}")


def _row(text: bytes, name: str, line: int) -> Row:
    where = f"{name}, line {line}"
    try:
        value = _decoder.decode(text)
    except UNREADABLE as error:
        half = " (it has \\ud…, which may be half of a character: write whole ones)" if _SURROGATE.search(text) else ""
        raise InvalidData(f"{where}: not JSON: {error}{half}") from error
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise InvalidData(f"{where}: needs a list `messages` of at least one message")
    for message in messages:
        _check_content(where, message)
    if messages[-1]["role"] != "user":
        raise InvalidData(f"{where}: the last message must have the role `user`, not {messages[-1]['role']!r}")
    return Row.of(value, line)


class PromptOrder:
    """Which row each admitted group takes: a new shuffle for each pass over the data, the same in all workers, because
    it depends on the seed only."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._passes: dict[int, list[int]] = {}

    def row(self, group_id: int) -> int:
        """The row of group `group_id`, from 0."""
        number, position = divmod(group_id, self._rows)
        if number not in self._passes:
            order = list(range(self._rows))
            random.Random(f"{self._seed}/{number}").shuffle(order)
            self._passes = {n: o for n, o in self._passes.items() if n >= number - 1} | {number: order}
        return self._passes[number][position]
