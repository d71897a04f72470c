"""Finds where a completion begins its answer, and the reference answer's tokens to append there (arXiv 2505.21493).

    sampled     so  we  add  <answer  >  4  1  <end>
    reasoning   so  we  add  <answer                       the sampled ids, up to the token that completes the opening
    reference                         >  4  2  </answer>   encoded by itself, and appended

Invariants: the reasoning's ids are those sampled, never decoded and encoded again, because a policy also samples token
sequences that its tokenizer would not produce. `stable` says whether the tokenizer would split the whole text at the
same place: if not, no policy writes these tokens by itself, and their likelihood means little.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace_core.errors import InvalidData
from headrace_core.storage.dataset import Row
from headrace_rewards.graders.templates import MissingPath, Template
from headrace_rewards.graders.verifier_free.base import LikelihoodSpec
from headrace_rewards.protocol import Sample

from .prompts import Prompt, Tokenizer

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Opened:
    """A completion that begins an answer, with the reference answer to append."""

    reasoning: int
    """Number of sampled tokens up to the end of the opening."""
    answer: Tokens
    """[R] token ids of the reference answer."""
    stable: bool
    """Whether the tokenizer would split the text at the same place."""


class ReferenceAnswers:
    """The reference answers of `prompts`, by their grader. Raises `InvalidData` for a row without one."""

    def __init__(self, tokenizer: Tokenizer, spec: LikelihoodSpec, prompts: Sequence[Prompt]) -> None:
        self._tokenizer = tokenizer
        self._opening = spec.opening
        self._template = Template.parse(spec.reference)
        for prompt in prompts:
            try:
                self._text(prompt.data)
            except MissingPath as missing:
                raise InvalidData(f"line {prompt.data.line}: there is no reference answer: {missing}") from None

    def alone(self, row: Row) -> tuple[Tokens, Tokens]:
        """(token ids of the opening, token ids of the reference answer), each encoded by itself."""
        return self._tokenizer.encode(self._opening), self._tokenizer.encode(self._text(row))

    def open(self, sampled: Tokens, row: Row) -> Opened | None:
        """Where the sampled tokens begin an answer; `None` if they do not."""
        text = self._tokenizer.exact_text(sampled)
        if self._opening not in text:
            return None
        size = 1 + bisect_left(range(1, len(sampled)), True, key=lambda n: self._opens(sampled[:n]))
        reasoning = self._tokenizer.exact_text(sampled[:size])
        beyond = reasoning.partition(self._opening)[2]  # not empty if the opening ends within a token
        answer_text = self._text(row)
        answer = self._tokenizer.encode(answer_text.removeprefix(beyond))
        rest = answer_text[len(beyond) :]
        return Opened(size, answer, answer_text.startswith(beyond) and self._splits_there(reasoning, answer, rest))

    def _opens(self, tokens: Tokens) -> bool:
        return self._opening in self._tokenizer.exact_text(tokens)

    def _splits_there(self, reasoning: str, answer: Tokens, text: str) -> bool:
        whole = self._tokenizer.encode(reasoning + text)
        before, after = np.split(whole, [len(whole) - len(answer)])
        return bool(np.array_equal(after, answer)) and self._tokenizer.exact_text(before) == reasoning

    def _text(self, row: Row) -> str:
        return self._template.render(Sample("", row.item, row.messages))
