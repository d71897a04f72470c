"""The tokens that end a text: both engines stop at them, and rewards do not see them.

A model names them in up to three places, which may differ: a chat model's tokenizer names the end of a turn, its
config.json the end of a document. Any of them ends a completion.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""A model folder without any of these files has no tokenizer."""


def end_tokens(model: Path, tokenizer: Any = None) -> tuple[int, ...]:
    """The union of the ids in generation_config.json, config.json (its text model included) and the tokenizer, sorted.

    `tokenizer`: the folder's tokenizer if it is loaded already. Raises OSError or ValueError if a file cannot be read.
    """
    config = AutoConfig.from_pretrained(str(model), local_files_only=True)
    if tokenizer is None and any((model / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    return tuple(
        sorted(
            {
                *_ids(_generation(model).get("eos_token_id")),
                *_ids(getattr(config, "eos_token_id", None)),
                *_ids(getattr(config.get_text_config(), "eos_token_id", None)),
                *_ids(None if tokenizer is None else tokenizer.eos_token_id),
            }
        )
    )


def _generation(model: Path) -> dict[str, Any]:
    file = model / "generation_config.json"
    if not file.is_file():
        return {}
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return settings


def _ids(given: int | Iterable[int] | None) -> tuple[int, ...]:
    """The ids of a configuration entry, which is a number, a list or missing."""
    if given is None:
        return ()
    return (given,) if isinstance(given, int) else tuple(given)
