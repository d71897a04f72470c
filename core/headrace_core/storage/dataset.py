"""Training and validation data: JSONL with `messages` (the last from the user); the whole row is the `item` that
rewards see. A wrong line is an `InvalidData` that names it."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InvalidData
from ..redis_access.json_records import UNREADABLE

TASK_LIBRARIES = ("reasoning_gym", "verifiers")
"""`reasoning_gym:chain_sum?size=1000` names rows to be made; see `headrace_rewards.tasks`."""

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
"""What files of other formats begin with."""
_LOOKED_AT = 4096
"""Bytes of a file by which its format is told."""
MOST_LINE_BYTES = 64 * 1024 * 1024
MOST_BYTES_A_TOKEN = 64
"""Of a prompt, on average; of text it is about four, and no tokenizer in use comes near this."""

_decoder = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a dataset: a prompt and what graders need of it."""

    messages: list[dict[str, Any]]
    item: dict[str, Any]
    """The row as it was written, `messages` included: what rewards see."""
    line: int = 0
    """Of its file, from 1 on."""

    @classmethod
    def of(cls, item: dict[str, Any], line: int = 0) -> Row:
        """Of a row of a file, or of an item that a grader is tried on, whose `messages` may be missing or anything."""
        messages = item.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            messages = []
        return cls(messages, item, line)


def names_task(reference: str) -> bool:
    """Whether it names rows to be made, not a file."""
    return reference.partition(":")[0] in TASK_LIBRARIES and ":" in reference


def read_rows(path: Path, name: str | None = None, sha256: str | None = None) -> list[Row]:
    """Every row of a file; empty lines are passed over. Raises `InvalidData`, also where the bytes are not `sha256`'s.

    A job that went on with other rows than it began with would be another job.
    """
    return list(each_row(path, name, sha256))


def each_row(path: Path, name: str | None = None, sha256: str | None = None) -> Iterator[Row]:
    """The same, one row in memory at a time."""
    name = name or path.name
    found = False
    try:
        with path.open("rb") as lines:
            if sha256 is not None and hashlib.file_digest(lines, "sha256").hexdigest() != sha256:
                raise InvalidData(f"{name} is not what was uploaded: {path} changed on the disk; upload it again")
            lines.seek(0)
            if (format := _other_format(lines.read(_LOOKED_AT))) is not None:
                raise InvalidData(f"{name} is {format}; write UTF-8 text with one JSON object on each line (JSONL)")
            lines.seek(0)
            for number in itertools.count(1):
                line = lines.readline(MOST_LINE_BYTES + 1)
                if len(line) > MOST_LINE_BYTES:
                    raise InvalidData(f"{name}, line {number}: more than {MOST_LINE_BYTES} bytes; shorten the row")
                if line.strip():
                    found = True
                    yield _row(line, name, number)
                elif not line:
                    break
    except OSError as error:
        raise InvalidData(f"{name} cannot be read: {path}: {error.strerror}; upload it again") from error
    if not found:
        raise InvalidData(f"{name} holds no rows; write one JSON object with `messages` on each line")


def check_prompt_bytes(where: str, messages: Sequence[Mapping[str, Any]], room: int) -> int:
    """How many bytes the contents have. Raises `InvalidData` for more than `room` tokens can be, before anything is
    tokenised: that takes some 200 bytes of memory for each byte."""
    size = sum(len(m["content"].encode(errors="replace")) for m in messages)
    if size > (most := MOST_BYTES_A_TOKEN * max(room, 1)):
        raise InvalidData(
            f"{where}: the prompt has {size} bytes, and {room} tokens, which fit beside max_tokens in the context, are "
            f"{most} bytes at most: shorten it, lower max_tokens, or raise max_context if the model allows",
            code="prompt_too_long",
        )
    return size


def check_prompt(where: str, tokens: int, largest_id: int, room: int, vocabulary: int | None) -> None:
    """Raises `InvalidData` for a prompt that no engine can serve: of no token, of more than `room`, or with an id that
    the model's embeddings (`vocabulary` of them; None: not known) do not have. `where` names file and line."""
    if tokens < 1:
        raise InvalidData(
            f"{where}: the prompt has no tokens: its messages are empty, and this model begins a text with none",
            code="prompt_empty",
        )
    if tokens > room:
        raise InvalidData(
            f"{where}: the prompt has {tokens} tokens, and only {room} fit beside max_tokens in the context: shorten "
            "it, lower max_tokens, or raise max_context if the model allows",
            code="prompt_too_long",
        )
    if vocabulary is not None and largest_id >= vocabulary:
        raise InvalidData(
            f"{where}: the prompt has the token id {largest_id}, and the model knows ids 0 … {vocabulary - 1}: the "
            "tokenizer holds more tokens than the model has embeddings; leave those tokens out, or resize the model",
            code="prompt_unknown_token",
        )


def _other_format(start: bytes) -> str | None:
    """What a file that begins so is, with the remedy, if it is surely no JSONL."""
    for magic, told in _MAGIC:
        if start.startswith(magic):
            return told
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
    if not isinstance(message, dict) or "role" not in message:
        raise InvalidData(f"{where}: each message needs a `role` and a text `content`")
    content = message.get("content")
    if isinstance(content, str):
        return
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        kinds = ", ".join(sorted({str(part.get("type"))[:30] for part in content}))
        found = f"is a list of parts ({kinds}); write the text of its parts as one string: only text is trained on"
    elif "content" not in message:
        found = "is missing; write a string, which may be empty"
    else:
        kind = "null" if content is None else f"of type {type(content).__name__}"
        found = f"is {kind}; write a string, which may be empty"
    raise InvalidData(f"{where}: the `content` of a message of role {str(message['role'])[:30]!r} {found}")


def _row(text: bytes, name: str, line: int) -> Row:
    where = f"{name}, line {line}"
    try:
        value = _decoder.decode(text)
    except UNREADABLE as error:
        raise InvalidData(f"{where}: not JSON: {error}") from error
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise InvalidData(f"{where}: needs a list `messages` of at least one message")
    for message in messages:
        _check_content(where, message)
    if messages[-1]["role"] != "user":
        raise InvalidData(f"{where}: the last message must have the role `user`, not {messages[-1]['role']!r}")
    return Row.of(value, line)


class PromptOrder:
    """Which row each admitted group takes: a fresh shuffle for every pass, the same for every worker with this seed."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._passes: dict[int, list[int]] = {}

    def row(self, group_id: int) -> int:
        """The row of group `group_id`."""
        number, position = divmod(group_id, self._rows)
        if number not in self._passes:
            order = list(range(self._rows))
            random.Random(f"{self._seed}/{number}").shuffle(order)
            self._passes = {n: o for n, o in self._passes.items() if n >= number - 1} | {number: order}
        return self._passes[number][position]
