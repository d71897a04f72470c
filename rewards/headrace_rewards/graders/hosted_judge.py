"""What graders share whose judge is a function of ours in host processes: see `judges`."""

from __future__ import annotations

from pydantic import Field

from headrace_core.config.reward_permissions import RewardPermissions

from ..sandbox.hosted_reward import Code, HostedReward
from ..sandbox.kernel.resource_limits import ResourceLimits
from .spec import GraderSpec


class JudgedSpec(GraderSpec):
    """How long a judge may take, and how many there are."""

    timeout: float = Field(default=10.0, gt=0, le=600)
    """Seconds for one completion; `math_verify` gives a whole group as much before it takes its completions singly."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that judge side by side."""


def hosted(judge: str, spec: JudgedSpec, rules: RewardPermissions, *, then: str = "") -> HostedReward:
    """The function `judge` of `judges/<judge>.py`, not started yet; `then` is executed after its import."""
    source = f"from headrace_rewards.judges import {judge}\njudge = {judge}.judge\n{then}"
    code = Code(spec.type, "judge", "text", spec.timeout, param="grader", source=source)
    return HostedReward(code, spec.workers, rules, ResourceLimits())
