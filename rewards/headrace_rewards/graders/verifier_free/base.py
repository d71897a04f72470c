"""Base of the rewards without a verifier: the policy's measurements that they need, and the grader of evaluations.

    training     the rollout worker measures a completion ──► Sample.measured ──► a pure function of the group
    evaluation   the grader in `evaluation`, if there is one; else the same function

A sample without measurements (in a grader check) is a `Failure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from pydantic import Field

from headrace_core.protocols.grader_check import Failure, Outcome, Score
from headrace_core.types.likelihood import Kind, Likelihood

from ...protocol import Need, PolicyMeasurements, Reward, Sample
from ..spec import AnyGrader, GraderSpec
from ..string_check import TemplateText
from ..templates import MissingPath, Template

UNMEASURED = Failure(
    "bad_input",
    "only the policy that samples can measure this: use the grader in a job, and name another one as its 'evaluation'",
)

Judge = Callable[[Sequence[Sample]], list[Outcome]]
"""Scores all completions of one prompt: one outcome per sample."""


class VerifierFreeSpec(GraderSpec):
    """`evaluation`: the grader of evaluations, in which the model writes the answer too and nothing is measured."""

    measures: ClassVar[frozenset[Need]] = frozenset()
    evaluation: AnyGrader | None = None

    def needs(self) -> frozenset[Need]:
        """What the policy measures in training."""
        return self.measures


class LikelihoodSpec(VerifierFreeSpec):
    """The reasoning ends with the token that completes `opening`; the filled template `reference` is scored after
    it."""

    measures = frozenset({"reference"})
    kind: ClassVar[Kind]
    opening: str = Field("<answer", min_length=1)
    reference: TemplateText = "> {{ item.answer }} </answer>"

    def lacks(self, item: dict[str, Any]) -> str | None:
        """Why the reference answer cannot be filled from the row; `None` if it can."""
        try:
            Template.parse(self.reference).render(Sample("", item))
        except MissingPath as missing:
            return f"the row has no reference answer: {missing}"
        return None


class VerifierFreeReward:
    """A reward that uses a `Judge` in training, and another grader, if given, in evaluations."""

    def __init__(self, judge: Judge, evaluation: Reward | None) -> None:
        self._judge = judge
        self._evaluation = evaluation

    async def start(self) -> None:
        """Start the grader of evaluations."""
        if self._evaluation is not None:
            await self._evaluation.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome a sample, in order; see `Reward`."""
        if self._evaluation is not None and all(sample.draw is None for sample in samples):
            return await self._evaluation.score(samples)
        return self._judge(samples)

    async def close(self) -> None:
        """Close the grader of evaluations."""
        if self._evaluation is not None:
            await self._evaluation.close()


def make(judge: Judge, spec: VerifierFreeSpec, builder: Any) -> VerifierFreeReward:
    """The reward of `spec`. `builder`: the registry's `Builder`, which makes the grader of evaluations."""
    return VerifierFreeReward(judge, None if spec.evaluation is None else builder.build(spec.evaluation))


def of_each(score: Callable[[PolicyMeasurements], Outcome]) -> Judge:
    """A judge that scores each completion alone."""
    return lambda samples: [UNMEASURED if sample.measured is None else score(sample.measured) for sample in samples]


def scored(likelihood: Likelihood, logprobs: Sequence[float], unopened: float, **parts: float) -> Score:
    """The score for the log-probabilities of y*'s tokens; `unopened` if there are none, because the completion opened
    no answer."""
    components = {**parts, "answer_opened": float(bool(logprobs))}
    if not logprobs:
        return Score(unopened, components)
    return Score(likelihood.value(logprobs), components, likelihood=likelihood)


def asked(grader: GraderSpec, evaluating: bool) -> Iterator[GraderSpec]:
    """`grader` and the graders nested in it that are called in training, or (`evaluating`) in an evaluation."""
    if isinstance(grader, VerifierFreeSpec) and grader.evaluation is not None:
        if evaluating:
            yield from asked(grader.evaluation, evaluating)
        else:
            yield grader
        return
    yield grader
    for _, value in grader:
        for held in _held(value):
            yield from asked(held, evaluating)


def _held(value: Any) -> Iterator[GraderSpec]:
    if isinstance(value, GraderSpec):
        yield value
    elif isinstance(value, dict):
        yield from (held for held in value.values() if isinstance(held, GraderSpec))
    elif isinstance(value, list | tuple):
        yield from (held for held in value if isinstance(held, GraderSpec))
