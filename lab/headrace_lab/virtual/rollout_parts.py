"""Components of a rollout worker that take no time: a reward, prompts without text, no sandbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np

from headrace_core.protocols.grader_check import Outcome, Score
from headrace_core.storage.dataset import Row
from headrace_rewards.protocol import Sample
from headrace_rollout.prompts import Prompt, Tokenizer


class InstantReward:
    """A reward that takes no time: `value` of each sample."""

    def __init__(self, value: Callable[[Sample], float]) -> None:
        self._value = value

    async def start(self) -> None: ...

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        return [Score(self._value(sample)) for sample in samples]

    async def close(self) -> None: ...


class NumberedPrompts:
    """Prompts of one token, the row's number; there is no text."""

    tokenizer = cast(Tokenizer, SimpleNamespace(text=lambda token_ids: ""))

    def __init__(self, rows: Callable[[str], int]) -> None:
        """`rows`: number of rows by file."""
        self._rows = rows

    async def read(self, file: str, longest: int) -> list[Prompt]:
        return [Prompt(row, np.array([row], np.int32), Row([], {})) for row in range(self._rows(file))]


async def no_sandbox() -> str:
    return "none"
