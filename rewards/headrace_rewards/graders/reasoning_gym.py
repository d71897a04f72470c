"""`reasoning_gym`: a completion's answer, scored by the verifier of the task that its row comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import Failure, Outcome

from ..protocol import Reward, Sample, each
from ..tasks.answer_extraction import Place, answer_in
from .hosted_judge import JudgedSpec, hosted

_JUDGE = "reasoning_gym_judge"
_KEYS = ("question", "answer", "metadata")


class ReasoningGymSpec(JudgedSpec):
    """The rows are those of a file made of `reasoning_gym:…`, or have its keys."""

    type: Literal["reasoning_gym"]
    task: str | None = None
    """`None`: the row's own `task`."""
    answer: Place = "tag"
    """Where in the completion the answer stands."""


class ReasoningGym:
    """A completion without an answer at its place is scored as the task scores no answer: 0, or nearly so."""

    def __init__(self, spec: ReasoningGymSpec, judge: Reward) -> None:
        self._task = spec.task
        self._place = spec.answer
        self._judge = judge

    async def start(self) -> None:
        """Start the processes; importing reasoning-gym takes each some seconds. Raises `InvalidRequest`."""
        await self._judge.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """From 0 to 1 a sample; `Failure("bad_input")` where the row lacks what the verifier needs."""
        return await each(samples, self._score)

    async def _score(self, samples: Sequence[Sample]) -> list[Outcome]:
        asked = [self._question(sample) for sample in samples]
        scored = iter(await self._judge.score([entry for entry in asked if isinstance(entry, Sample)]))
        return [next(scored) if isinstance(entry, Sample) else entry for entry in asked]

    async def close(self) -> None:
        """End the processes."""
        await self._judge.close()

    def _question(self, sample: Sample) -> Sample | Failure:
        item = {key: sample.item[key] for key in _KEYS if key in sample.item}
        task = self._task or sample.item.get("task")
        lacking = [key for key in _KEYS if key not in item] + ([] if task else ["task"])
        if lacking:
            return Failure("bad_input", f"the row has no {', '.join(lacking)}: it is not of a reasoning-gym file")
        return Sample("", item | {"task": task, "given": answer_in(sample.output_text, self._place)})


def make(spec: ReasoningGymSpec, rules: RewardPermissions) -> ReasoningGym:
    """A reward that is not started yet; at its start an unknown task is refused."""
    known = "" if spec.task is None else f"{_JUDGE}.scorer({spec.task!r})"
    return ReasoningGym(spec, hosted(_JUDGE, spec, rules, then=known))
