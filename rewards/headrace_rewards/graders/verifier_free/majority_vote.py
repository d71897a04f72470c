"""`majority_vote`: R = 1 for the answer that most completions of the prompt give, else 0 (TTRL, arXiv 2504.16084).

A completion's answer is the text inside its last pair of tags `<tag>…</tag>`, else its last line; an empty completion
has no answer and no vote. In a tie, the answer that occurs first wins. A greedy completion, which some algorithms use
as a baseline, is scored by the vote but does not take part in it: else the baseline would depend on itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from headrace_core.protocols.grader_check import NotApplicable, Outcome, Score

from ...protocol import Reward, Sample
from . import base


class MajorityVoteSpec(base.VerifierFreeSpec):
    """A single completion has no majority: without an `evaluation`, evaluations have no reward."""

    type: Literal["majority_vote"]
    tag: str = Field("answer", pattern=r"^\w+$")


def answer_in(text: str, tag: str) -> str | None:
    """The answer with normalised whitespace; `None` if there is none."""
    tagged = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    lines = tagged[-1:] or text.strip().splitlines()[-1:]
    return " ".join(lines[0].split()) or None if lines else None


def make(spec: MajorityVoteSpec, builder: Any) -> Reward:
    def vote(samples: Sequence[Sample]) -> list[Outcome]:
        answers = [answer_in(sample.output_text, spec.tag) for sample in samples]
        votes: dict[int, Counter[str]] = {}
        for sample, answer in zip(samples, answers, strict=True):
            if sample.draw is not None and sample.of_group and answer is not None:
                votes.setdefault(sample.draw.group, Counter())[answer] += 1
        return [_outcome(sample, answer, votes) for sample, answer in zip(samples, answers, strict=True)]

    return base.make(vote, spec, builder)


def _outcome(sample: Sample, answer: str | None, votes: dict[int, Counter[str]]) -> Outcome:
    if sample.draw is None:
        return NotApplicable()
    cast = votes.get(sample.draw.group, Counter())
    if not cast:
        return Score(0.0)
    ((winner, count),) = cast.most_common(1)
    return Score(float(answer == winner), {"agreement": count / cast.total()})
