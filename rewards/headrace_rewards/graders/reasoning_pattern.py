"""`reasoning_pattern`: how many phrases of reasoning a completion has, whatever its answer is.

The reasoning pattern reward of Lv et al., "The Climb Carves Wisdom Deeper Than the Summit" (arXiv 2505.22653):

    max(0, share of the phrases − distinct repeated 20-grams of words / all 20-grams of words)

where a phrase counts once, however often it is there. The paper and its published code differ in two terms:

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
"""The published 40, as they are spelled there."""
ENOUGH = 20
"""Phrases that are worth 1 by the published code."""
WORDS = 20
"""Of an n-gram of the repetition penalty."""
NEXT_TURN = "user: "
"""How a completion that writes the next turn of its chat itself begins it, in lower case."""


def _lowered(phrases: tuple[str, ...]) -> tuple[str, ...]:
    lowered = tuple(phrase.lower() for phrase in phrases)
    twice = sorted(phrase for phrase, count in Counter(lowered).items() if count > 1)
    if twice:
        raise ValueError(f"a phrase counts once; there twice: {', '.join(map(repr, twice))}")
    return lowered


Phrase = Annotated[str, Field(min_length=1, max_length=200)]


class ReasoningPatternSpec(GraderSpec):
    """Phrases are looked for in the lower-cased text, anywhere in it: "wait" is in "await"."""

    type: Literal["reasoning_pattern"]
    phrases: Annotated[tuple[Phrase, ...], AfterValidator(_lowered), Field(min_length=1, max_length=10_000)] = PHRASES
    scaling: Literal["paper", "code"] = "paper"
    repetition_penalty: bool = True


class ReasoningPattern:
    """Needs no process, and nothing of the row."""

    def __init__(self, spec: ReasoningPatternSpec) -> None:
        self._spec = spec

    async def start(self) -> None:
        """Nothing to start."""

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """From 0 to 1 a sample; components `phrases` (a count), `repetition` (a share), and with the scaling `code`
        `user_turns` (a count)."""
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
    """Distinct 20-grams of words that are there more than once, over all 20-grams; 0 where there is none."""
    words = text.split()
    grams = Counter(tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1))
    return sum(count > 1 for count in grams.values()) / grams.total() if grams else 0.0
