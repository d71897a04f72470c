"""Base of the graders that compare two filled templates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from headrace_core.protocols.grader_check import Outcome, Score

from ..protocol import Sample
from .templates import MissingPath, Template, outcome_of, rendered


class TextPairReward:
    """Scores `compare(input, reference)`. It needs no process, since it executes no user code."""

    def __init__(self, text: str, reference: str, compare: Callable[[str, str], float]) -> None:
        """`text`, `reference`: valid templates."""
        self._text, self._reference = Template.parse(text), Template.parse(reference)
        self._compare = compare

    async def start(self) -> None: ...

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome per sample, computed in a thread; see `outcome_of` for templates that cannot be filled."""
        return await asyncio.to_thread(lambda: [self._score(sample) for sample in samples])

    async def close(self) -> None: ...

    def _score(self, sample: Sample) -> Outcome:
        try:
            return Score(float(self._compare(*rendered(sample, self._text, self._reference))))
        except MissingPath as missing:
            return outcome_of(missing)
