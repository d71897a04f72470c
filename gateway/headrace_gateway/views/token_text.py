"""Token ids as text, token by token, by the model's own tokenizer.json; no torch.

Invariant: the strings of all tokens, joined, are the text. A character that several tokens make stands whole with the
last of them, the others are empty; bytes that never become one are U+FFFD, as the tokenizer writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from headrace_core.errors import InvalidState

_CACHED = 4
"""Tokenizers: one of 150,000 tokens takes about half a second to load, and some 50 MB."""
_MAX_CHARACTER_TOKENS = 4
"""UTF-8 has at most four bytes a character, so that more tokens without a whole character never become one."""


def tokenizer_of(model: Path) -> Tokenizer:
    """The tokenizer of a model folder, loaded again when its file changed. Raises `InvalidState` without one."""
    file = model / "tokenizer.json"
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        raise InvalidState(f"completions cannot be read: the model folder {model} holds no tokenizer.json") from error
    return _loaded(file, changed)


@lru_cache(_CACHED)
def _loaded(file: Path, changed: int) -> Tokenizer:
    return Tokenizer.from_file(str(file))


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token, special tokens by their names."""
    stream = DecodeStream(skip_special_tokens=False)
    texts = list[str]()
    begun = list[int]()
    """Tokens that are no whole character yet."""
    for token in ids:
        text = stream.step(tokenizer, token)
        begun = [] if text else [*begun, token]
        if len(begun) > _MAX_CHARACTER_TOKENS:
            text, stream, begun = _of(tokenizer, begun), DecodeStream(skip_special_tokens=False), []
        texts.append(text or "")
    if begun:
        texts[-1] = _of(tokenizer, begun)
    return texts


def _of(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)
