"""`verifiers`: scores a completion by the rubric of an environment that was written for the verifiers library."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest

from ..sandbox.hosted_reward import Code, HostedReward
from ..sandbox.kernel.resource_limits import ResourceLimits
from ..tasks.file_names import reject_paths
from ..tasks.verifiers_modules import module_of
from .hosted_judge import JudgedSpec

_JUDGE = "verifiers_env_judge"


def _installed(name: str) -> str:
    try:
        module_of(name)
    except InvalidRequest as fault:
        raise ValueError(fault.message) from None
    return name


def _without_files(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        reject_paths(arguments, "arguments")
    except InvalidRequest as fault:
        raise ValueError(fault.message) from None
    return arguments


class VerifiersEnvSpec(JudgedSpec):
    """For rows of a file made from `verifiers:…`, or rows with the keys that the environment's reward functions
    name."""

    type: Literal["verifiers"]
    environment: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_installed)]
    arguments: Annotated[dict[str, JsonValue], AfterValidator(_without_files)] = Field(default={})
    """Arguments of the environment's `load_environment`; none may name a file."""


def make(spec: VerifiersEnvSpec, rules: RewardPermissions) -> HostedReward:
    """A reward that is not started yet. Its start raises `InvalidRequest` if the environment cannot be loaded."""
    module = module_of(spec.environment)
    source = (
        f"from headrace_rewards.judges import {_JUDGE}\n"
        f"judge = {_JUDGE}.of_environment({spec.environment!r}, {spec.arguments!r}, {str(module.parent)!r})"
    )
    code = Code(spec.type, "judge", "messages", spec.timeout, "grader.environment", source=source, beside=str(module))
    return HostedReward(code, spec.workers, rules, ResourceLimits())
