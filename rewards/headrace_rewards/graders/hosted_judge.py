"""What graders share whose judge is a function of ours in host processes: see `judges`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import Field

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import Outcome

from ..protocol import Reward, Sample, each
from ..sandbox.hosted_reward import Code, HostedReward
from ..sandbox.kernel.resource_limits import ResourceLimits
from .spec import GraderSpec


class JudgedSpec(GraderSpec):
    """How long a judge may take, and how many there are."""

    timeout: float = Field(default=10.0, gt=0, le=600)
    """Seconds for one completion; `math_verify` gives a whole group as much before it takes its completions singly."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that judge side by side."""


class JudgedReward(ABC):
    """Puts a question to the judge about each completion; a subclass makes the questions."""

    def __init__(self, judge: Reward) -> None:
        self._judge = judge

    async def start(self) -> None:
        """Start the processes; importing a judge's library takes each some seconds. Raises `InvalidRequest`."""
        await self._judge.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """From 0 to 1 a sample; `Failure("bad_input")` where the row lacks what the judge needs."""
        return await each(samples, self._score)

    async def close(self) -> None:
        """End the processes. Idempotent."""
        await self._judge.close()

    @abstractmethod
    def _question(self, sample: Sample) -> Sample | Outcome:
        """What the judge is asked about a completion, or the outcome of one that it need not be asked about."""

    async def _ask(self, questions: list[Sample]) -> list[Outcome]:
        return await self._judge.score(questions)

    async def _score(self, samples: Sequence[Sample]) -> list[Outcome]:
        entries = [self._question(sample) for sample in samples]
        questions = [entry for entry in entries if isinstance(entry, Sample)]
        answers = iter(await self._ask(questions) if questions else [])
        return [next(answers) if isinstance(entry, Sample) else entry for entry in entries]


def hosted(judge: str, spec: JudgedSpec, rules: RewardPermissions, *, then: str = "") -> HostedReward:
    """The function `judge` of `judges/<judge>.py`, not started yet; `then` is executed after its import."""
    source = f"from headrace_rewards.judges import {judge}\njudge = {judge}.judge\n{then}"
    code = Code(spec.type, "judge", "text", spec.timeout, param="grader", source=source)
    return HostedReward(code, spec.workers, rules, ResourceLimits())
