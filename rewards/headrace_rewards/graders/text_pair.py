"""A grader that compares two texts, both templates of the row and the completion."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from headrace_core.protocols.grader_check import Outcome, Score

from ..protocol import Sample
from .templates import MissingPath, Template, outcome_of, rendered


class TextPairReward:
    """Scores `compare(input, reference)`. Needs no process: nothing of the user's is executed."""

    def __init__(self, text: str, reference: str, compare: Callable[[str, str], float]) -> None:
        """`text` and `reference` are templates that parse."""
        self._text, self._reference = Template.parse(text), Template.parse(reference)
        self._compare = compare

    async def start(self) -> None: ...

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome a sample, computed in a thread; see `outcome_of` for one whose templates cannot be filled."""
        return await asyncio.to_thread(lambda: [self._score(sample) for sample in samples])

    async def close(self) -> None: ...

    def _score(self, sample: Sample) -> Outcome:
        try:
            return Score(float(self._compare(*rendered(sample, self._text, self._reference))))
        except MissingPath as missing:
            return outcome_of(missing)
