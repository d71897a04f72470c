"""`reasoning_pattern`: scores how many phrases typical of reasoning a completion contains, whatever its answer is.

The reasoning pattern reward of Lv et al., "The Climb Carves Wisdom Deeper Than the Summit" (arXiv 2505.22653):

    max(0, share of the phrases − distinct repeated 20-grams of words / all 20-grams of words)

where each phrase counts once, however often it occurs. The paper and its published code differ in two terms:

    paper   the share is count / number of phrases: all 40 are worth 1
    code    the share is min(1, count / 20): 20 of them already are. Also subtracted: how often "user: " is there, so
            that a completion which goes on to ask itself the next question gets 0

The code also gives 0 to a completion without an answer between its tags; whether there is one is for another grader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from headrace_core.protocols.grader_check import Outcome, Score

from ..protocol import Sample
from .spec import GraderSpec

PHRASES = (
    *("i need to", "we need to", "wait", "alternatively", "let me check", "let me see", "let's focus on"),
    *("we know that", "we can observe ", "we can see ", "let me try", "let's try", "let us try", "first, "),
    *("firstly, ", "next, ", "finally, ", "let us first", "let's first", "let me first", "try again", "still not"),
    *("not working", "not correct", "does not work", "doesn't work", "makes sence", "since we ", "because we "),
    *("consequently", "as a result", "thus", "therefore", "hence", "so that", "thereby", "if we", "given there "),
    *("for instance ", "for example "),
)
"""The published 40, in their original spelling."""
ENOUGH = 20
"""Number of phrases that score 1 with the scaling `code`."""
WORDS = 20
"""Words in an n-gram of the repetition penalty."""
NEXT_TURN = "user: "
"""Lower-case start of a next turn that a completion writes by itself."""


def _lowered(phrases: tuple[str, ...]) -> tuple[str, ...]:
    lowered = tuple(phrase.lower() for phrase in phrases)
    twice = sorted(phrase for phrase, count in Counter(lowered).items() if count > 1)
    if twice:
        raise ValueError(f"a phrase counts once; there twice: {', '.join(map(repr, twice))}")
    return lowered


Phrase = Annotated[str, Field(min_length=1, max_length=200)]


class ReasoningPatternSpec(GraderSpec):
    """Phrases are searched in the lower-cased text, also within words: "wait" is found in "await"."""

    type: Literal["reasoning_pattern"]
    phrases: Annotated[tuple[Phrase, ...], AfterValidator(_lowered), Field(min_length=1, max_length=10_000)] = PHRASES
    scaling: Literal["paper", "code"] = "paper"
    repetition_penalty: bool = True


class ReasoningPattern:
    """The reward of a `reasoning_pattern` grader. It needs no process and no row."""

    def __init__(self, spec: ReasoningPatternSpec) -> None:
        self._spec = spec

    async def start(self) -> None:
        """Nothing to start."""

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """A score from 0 to 1 per sample, with the components `phrases` (a count), `repetition` (a share) and, with the
        scaling `code`, `user_turns` (a count)."""
        return [self.of(sample.output_text) for sample in samples]

    async def close(self) -> None:
        """Nothing to close."""

    def of(self, text: str) -> Score:
        """The score of one completion."""
        lowered, spec = text.lower(), self._spec
        count = sum(phrase in lowered for phrase in spec.phrases)
        repeated = repetition(lowered) if spec.repetition_penalty else 0.0
        components = {"phrases": float(count), "repetition": repeated}
        if spec.scaling == "paper":
            return Score(max(0.0, count / len(spec.phrases) - repeated), components)
        turns = float(lowered.count(NEXT_TURN))
        value = min(1.0, count / ENOUGH) - repeated - turns
        return Score(max(0.0, value), {**components, "user_turns": turns})


def repetition(text: str) -> float:
    """Number of distinct 20-grams of words that occur more than once, divided by the number of all 20-grams; 0 if there
    are none."""
    words = text.split()
    grams = Counter(tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1))
    return sum(count > 1 for count in grams.values()) / grams.total() if grams else 0.0
