"""`registered`: a function that an installed package declares as an entry point of the group `headrace.rewards`.

    [project.entry-points."headrace.rewards"]
    brevity = "acme_rewards.text:brevity"

The operator installs the package, and a request names the entry point. The function runs like that of a `function`
grader, in processes of its own: see `sandbox`.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest

from ..sandbox.hosted_reward import Code, HostedReward
from ..sandbox.kernel.resource_limits import ResourceLimits
from ..user_code.argument_binding import Form
from .spec import GraderSpec

GROUP = "headrace.rewards"


def _known(name: str) -> str:
    _find(name)
    return name


def _find(name: str) -> EntryPoint:
    """The entry point of that name; raises `ValueError`."""
    registered = entry_points(group=GROUP)
    found = {entry.value: entry for entry in registered if entry.name == name}
    if not found:
        names = ", ".join(sorted({entry.name for entry in registered})) or f"none: no package has the group '{GROUP}'"
        raise ValueError(f"no reward is registered as '{name}'; registered are: {names}")
    if len(found) > 1:
        raise ValueError(f"'{name}' is registered more than once: {', '.join(sorted(found))}")
    (entry,) = found.values()
    if not entry.attr.isidentifier():
        raise ValueError(f"'{name}' is registered as {entry.value}, which is not of the form module:function")
    return entry


class EntryPointSpec(GraderSpec):
    """`options`: arguments of the function, the same in every call. They take precedence over keys of the row."""

    type: Literal["registered"]
    reward: Annotated[str, AfterValidator(_known)]
    """The entry point's name."""
    options: dict[str, JsonValue] = Field(default={})
    timeout: float = Field(default=30.0, gt=0, le=600)
    """Seconds for one completion, or for one group where the function takes groups."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that run the function side by side."""
    form: Form | None = None
    """Type of `prompt` and `completion`: strings, or lists of messages. If not given, a grader check finds out which
    works; without a check they are strings."""


class EntryPointReward(HostedReward):
    """The reward of a `registered` grader. The module is imported only in its processes, never in the service."""

    def __init__(self, spec: EntryPointSpec, rules: RewardPermissions) -> None:
        """Raises `InvalidRequest` if the package was removed since the spec was parsed."""
        try:
            entry = _find(spec.reward)
        except ValueError as fault:
            raise InvalidRequest(str(fault), param="grader.reward") from None
        path = _folder(entry) / entry.module.partition(".")[0]
        options: dict[str, Any] = dict(spec.options)
        code = Code(
            *(str(path), entry.attr, spec.form or "text", spec.timeout, "grader.reward"),
            module=entry.module,
            options=options,
        )
        super().__init__(code, spec.workers, rules, ResourceLimits())


def _folder(entry: EntryPoint) -> Path:
    """The folder that the entry point's package was installed into."""
    assert entry.dist is not None  # of entry_points(), all have one
    return Path(str(entry.dist.locate_file(""))).absolute()
