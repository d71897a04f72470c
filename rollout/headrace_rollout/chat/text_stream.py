"""The text of a completion as its tokens arrive, up to the first stop string.

    sampled         9  3  ·  <U  ser  :                  stop = ("<User",)
    released        93·                  ── at once
    held back           <U                ── may still become a stop string
    after `ser`     93·                  ── stopped: neither the stop string nor what follows is ever released

Invariants: the released texts, joined, are the tokenizer's text of all tokens at once, cut at the first stop string. An
incomplete character is held back until it is complete, or the completion has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace_core.protocols.chat import ChatToken

from ..prompts import Tokenizer

_INCOMPLETE = "\ufffd"
"""A tokenizer's text for a part of a character."""


class TextStream:
    """The text of one completion, as its tokens arrive."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.stopped = False
        """Whether a stop string has ended the text; tokens after it do not count."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        # Tokens before `_context` are not decoded again. Those between it and `_decoded` are context for the next ones,
        # because some tokenizers decode the first token of a text differently from the same token within it.
        self._context = self._decoded = 0
        self._text = ""
        self._released = 0
        """Characters of the text that `take` has returned."""
        self._tokens: list[tuple[int, ChatToken]] = []
        """(position of its text, token) of the tokens that `take` has not returned."""

    def add(self, token: int, logprob: float) -> None:
        """Append a token. Do not call it once `stopped`."""
        begins = len(self._text)
        self._ids.append(token)
        self._tokens.append((begins, ChatToken(self._tokenizer.exact_text(np.array([token], np.int32)), logprob)))
        self._text += self._decode(incomplete=False)
        self._find_stop(begins)

    def end(self) -> None:
        """Note that there are no more tokens."""
        if not self.stopped:
            begins = len(self._text)
            self._text += self._decode(incomplete=True)
            self._find_stop(begins)

    def take(self, ended: bool) -> tuple[str, tuple[ChatToken, ...]]:
        """(text, tokens) that can be released and were not returned before; once `ended`, all of the rest."""
        safe = len(self._text) - (0 if ended or self.stopped else self._may_become_stop())
        text, self._released = self._text[self._released : safe], safe
        ready = tuple(token for begins, token in self._tokens if begins < safe)
        self._tokens = [(begins, token) for begins, token in self._tokens if begins >= safe]
        return text, ready

    def _decode(self, incomplete: bool) -> str:
        """The text of the tokens not decoded yet; '' while they end in an incomplete character, unless `incomplete`."""
        before = self._written(self._ids[self._context : self._decoded])
        after = self._written(self._ids[self._context :])
        if after.endswith(_INCOMPLETE) and not incomplete:
            return ""
        self._context, self._decoded = self._decoded, len(self._ids)
        return after[len(before) :]

    def _written(self, ids: list[int]) -> str:
        return self._tokenizer.text(np.array(ids, np.int32))

    def _find_stop(self, begins: int) -> None:
        """Cut the text at the first stop string that ends after position `begins`."""
        found = [self._text.find(stop, max(0, begins - len(stop) + 1)) for stop in self._stop]
        starts = [at for at in found if at >= 0]
        if starts:
            self._text = self._text[: min(starts)]
            self.stopped = True

    def _may_become_stop(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        lengths = (
            size for stop in self._stop for size in range(len(stop) - 1, 0, -1) if self._text.endswith(stop[:size])
        )
        return max(lengths, default=0)
