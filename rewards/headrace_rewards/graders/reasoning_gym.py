"""`reasoning_gym`: scores a completion's answer by the verifier of the task that its row comes from."""

from __future__ import annotations

from typing import Literal

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.protocols.grader_check import Failure

from ..protocol import Reward, Sample
from ..tasks.answer_extraction import Place, answer_in
from .hosted_judge import JudgedReward, JudgedSpec, hosted

_JUDGE = "reasoning_gym_judge"
_KEYS = ("question", "answer", "metadata")


class ReasoningGymSpec(JudgedSpec):
    """For rows of a file made from `reasoning_gym:…`, or rows with the same keys."""

    type: Literal["reasoning_gym"]
    task: str | None = None
    """The task's name; `None`: the row's key `task`."""
    answer: Place = "tag"
    """Where the completion has its answer."""


class ReasoningGym(JudgedReward):
    """A completion without an answer gets the task's score for no answer, which is 0 or close to 0."""

    def __init__(self, spec: ReasoningGymSpec, judge: Reward) -> None:
        super().__init__(judge)
        self._task = spec.task
        self._place = spec.answer

    def _question(self, sample: Sample) -> Sample | Failure:
        item = {key: sample.item[key] for key in _KEYS if key in sample.item}
        task = self._task or sample.item.get("task")
        lacking = [key for key in _KEYS if key not in item] + ([] if task else ["task"])
        if lacking:
            return Failure("bad_input", f"the row has no {', '.join(lacking)}: it is not of a reasoning-gym file")
        return Sample("", item | {"task": task, "given": answer_in(sample.output_text, self._place)})


def make(spec: ReasoningGymSpec, rules: RewardPermissions) -> ReasoningGym:
    """A reward that is not started yet. Its start raises `InvalidRequest` for an unknown task."""
    known = "" if spec.task is None else f"{_JUDGE}.scorer({spec.task!r})"
    return ReasoningGym(spec, hosted(_JUDGE, spec, rules, then=known))
