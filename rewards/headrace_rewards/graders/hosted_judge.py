"""Base of the graders whose judge is a function of Headrace that runs in sandboxed processes: see `judges`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import Field

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import Outcome

from ..protocol import Reward, Sample, score_wanted
from ..sandbox.hosted_reward import Code, HostedReward
from ..sandbox.kernel.resource_limits import ResourceLimits
from .spec import GraderSpec


class JudgedSpec(GraderSpec):
    """Time limit and number of the judge's processes."""

    timeout: float = Field(default=10.0, gt=0, le=600)
    """Seconds for one completion. `math_verify` applies the limit to a whole group first, then to single
    completions."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that judge side by side."""


class JudgedReward(ABC):
    """Sends the judge one question per completion; a subclass builds the questions."""

    def __init__(self, judge: Reward) -> None:
        self._judge = judge

    async def start(self) -> None:
        """Start the processes; each takes some seconds to import the judge's library. Raises `InvalidRequest`."""
        await self._judge.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """A score from 0 to 1 per sample; `Failure("bad_input")` if the row lacks what the judge needs."""
        return await score_wanted(samples, self._score)

    async def close(self) -> None:
        """End the processes. Idempotent."""
        await self._judge.close()

    @abstractmethod
    def _question(self, sample: Sample) -> Sample | Outcome:
        """The question about a completion, or the completion's outcome if no question is needed."""

    async def _ask(self, questions: list[Sample]) -> list[Outcome]:
        return await self._judge.score(questions)

    async def _score(self, samples: Sequence[Sample]) -> list[Outcome]:
        entries = [self._question(sample) for sample in samples]
        questions = [entry for entry in entries if isinstance(entry, Sample)]
        answers = iter(await self._ask(questions) if questions else [])
        return [next(answers) if isinstance(entry, Sample) else entry for entry in entries]


def hosted(judge: str, spec: JudgedSpec, rules: RewardPermissions, *, then: str = "") -> HostedReward:
    """A reward, not started yet, that runs the function `judge` of `judges/<judge>.py`; `then` is executed after its
    import."""
    source = f"from headrace_rewards.judges import {judge}\njudge = {judge}.judge\n{then}"
    code = Code(spec.type, "judge", "text", spec.timeout, param="grader", source=source)
    return HostedReward(code, spec.workers, rules, ResourceLimits())
