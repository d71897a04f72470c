"""Which tokens end a text: what both engines stop at, and what a reward does not read.

A model says it in up to three places, and they need not agree: a chat model's tokenizer ends a turn, its config.json a
document. Any of them ends a completion.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""A folder with none of them has no tokenizer."""


def end_tokens(model: Path, tokenizer: Any = None) -> tuple[int, ...]:
    """Ids, ascending: the union of generation_config.json, config.json (also of its text model's) and the tokenizer.

    `tokenizer` is the folder's, where it has been loaded. Raises OSError or ValueError where a file cannot be read.
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
    settings: dict[str, Any] = json.loads(file.read_text())
    return settings


def _ids(given: int | Iterable[int] | None) -> tuple[int, ...]:
    """Of a number, a list of them, or nothing."""
    if given is None:
        return ()
    return (given,) if isinstance(given, int) else tuple(given)
