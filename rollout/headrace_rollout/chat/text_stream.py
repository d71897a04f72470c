"""A completion's text as its tokens come, up to the first stop string.

    sampled         9  3  ·  <U  ser  :                  stop = ("<User",)
    written         93·                  ── given out at once
    held back           <U                ── may still become a stop string
    after `ser`     93·                  ── stopped: neither the stop string nor what follows is ever given out

Invariants: what was given out, put together, is what the tokenizer makes of all tokens at once, cut at the first stop
string; half a character is held back until the rest of it has come, or the completion has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace_core.protocols.chat import ChatToken

from ..prompts import Tokenizer

_HALF = "\ufffd"
"""What a tokenizer makes of a part of a character."""


class TextStream:
    """The text of one completion, as its tokens arrive."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.stopped = False
        """By a stop string: tokens after it do not count."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        # Tokens before `_context` are not decoded again; those between it and `_decoded` only say how the next one is
        # to be read (some tokenizers write the first token of a text in another way than the same token within it).
        self._context = self._decoded = 0
        self._text = ""
        self._given = 0
        self._tokens: list[tuple[int, ChatToken]] = []
        """(where its text begins, token), of those not yet given out."""

    def add(self, token: int, logprob: float) -> None:
        """One more token; not to be called once `stopped`."""
        begins = len(self._text)
        self._ids.append(token)
        self._tokens.append((begins, ChatToken(self._tokenizer.exact_text(np.array([token], np.int32)), logprob)))
        self._text += self._decode(half=False)
        self._find_stop(begins)

    def end(self) -> None:
        """There are no more tokens."""
        if not self.stopped:
            begins = len(self._text)
            self._text += self._decode(half=True)
            self._find_stop(begins)

    def take(self, ended: bool) -> tuple[str, tuple[ChatToken, ...]]:
        """What may be given out and has not been; once `ended`, all of it."""
        safe = len(self._text) - (0 if ended or self.stopped else self._may_become_stop())
        text, self._given = self._text[self._given : safe], safe
        ready = tuple(token for begins, token in self._tokens if begins < safe)
        self._tokens = [(begins, token) for begins, token in self._tokens if begins >= safe]
        return text, ready

    def _decode(self, half: bool) -> str:
        """The text of the tokens not yet decoded; nothing while they end in `half` a character."""
        before = self._written(self._ids[self._context : self._decoded])
        after = self._written(self._ids[self._context :])
        if after.endswith(_HALF) and not half:
            return ""
        self._context, self._decoded = self._decoded, len(self._ids)
        return after[len(before) :]

    def _written(self, ids: list[int]) -> str:
        return self._tokenizer.text(np.array(ids, np.int32))

    def _find_stop(self, begins: int) -> None:
        """Cut the text at the first stop string, of which a part at least lies in what came at `begins`."""
        found = [self._text.find(stop, max(0, begins - len(stop) + 1)) for stop in self._stop]
        starts = [at for at in found if at >= 0]
        if starts:
            self._text = self._text[: min(starts)]
            self.stopped = True

    def _may_become_stop(self) -> int:
        """Characters at the text's end with which a stop string begins."""
        lengths = (
            size for stop in self._stop for size in range(len(stop) - 1, 0, -1) if self._text.endswith(stop[:size])
        )
        return max(lengths, default=0)
