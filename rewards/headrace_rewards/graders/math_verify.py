"""`math_verify`: 1 if a completion's final answer equals the reference according to the math-verify package, else 0.

    score(group) ─► templates ─► one batch ─► a host process (judges/math_verify_judge.py) ─► verdicts
                                   └ lost? each completion alone ─► the one at fault fails, the others have scores

A model's text is not safe to evaluate (`9^{9^{9^9}}`), so no completion is parsed in the service.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome

from ..protocol import Reward, Sample
from .hosted_judge import JudgedReward, JudgedSpec, hosted
from .string_check import TemplateText
from .templates import MissingPath, Template, outcome_of, rendered


class MathVerifySpec(JudgedSpec):
    """`input` and `reference` are templates. A reference without math delimiters is parsed as LaTeX as a whole."""

    type: Literal["math_verify"]
    reference: TemplateText = "{{ item.answer }}"
    input: TemplateText = "{{ sample.output_text }}"


class MathVerify(JudgedReward):
    """The reward of a `math_verify` grader. A completion in which no answer is found scores 0."""

    def __init__(self, spec: MathVerifySpec, judge: Reward) -> None:
        super().__init__(judge)
        self._input = Template.parse(spec.input)
        self._reference = Template.parse(spec.reference)

    async def _ask(self, questions: list[Sample]) -> list[Outcome]:
        verdicts = await self._judge.score(questions)
        if len(questions) > 1 and any(isinstance(verdict, Failure) for verdict in verdicts):
            alone = await asyncio.gather(*(self._judge.score([question]) for question in questions))
            verdicts = [verdict for (verdict,) in alone]
        return [_outcome(verdict, asked.item["gold"]) for verdict, asked in zip(verdicts, questions, strict=True)]

    def _question(self, sample: Sample) -> Sample | Outcome:
        try:
            text, gold = rendered(sample, self._input, self._reference)
            return Sample(text, {"gold": gold})
        except MissingPath as missing:
            return outcome_of(missing)


def make(spec: MathVerifySpec, rules: RewardPermissions) -> MathVerify:
    """A reward that is not started yet."""
    return MathVerify(spec, hosted("math_verify_judge", spec, rules))


def _outcome(verdict: Outcome, gold: str) -> Outcome:
    if isinstance(verdict, NotApplicable):
        return Failure("bad_input", f"math-verify finds no mathematics in the reference {gold[:100]!r}")
    return verdict
