"""`python`: source code with `grade(sample, item)`, like OpenAI's grader. It runs like a `function`: see `sandbox`.

The source is compiled only in the processes that run it, never in the service.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from headrace_core.config.reward_permissions import RewardPermissions, SandboxLevel

from ..sandbox.hosted_reward import Code, HostedReward
from ..sandbox.kernel.resource_limits import ResourceLimits
from .spec import GraderSpec

_MAX_SOURCE_BYTES = 256_000
_MEMORY_BYTES = 2 << 30
_SHOWN_AS = "grader.source"
_ENTRY = "grade"


def _sized(source: str) -> str:
    size = len(source.encode("utf-8", "surrogatepass"))
    if size >= _MAX_SOURCE_BYTES:
        raise ValueError(f"the source has {size} bytes; less than {_MAX_SOURCE_BYTES} are taken")
    return source


class PythonSpec(GraderSpec):
    """OpenAI's fields and limits: 256 kB of source, two minutes, 2 GB of memory."""

    type: Literal["python"]
    source: Annotated[str, AfterValidator(_sized)]
    """Source that defines `grade(sample, item)`; its arguments are filled by name, like those of a `function`."""
    image_tag: str | None = None
    """Accepted because OpenAI's clients may send it, but without effect: the code runs in the service's environment."""
    timeout: float = Field(default=120.0, gt=0, le=120)
    """Seconds for one completion."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that run the code side by side."""

    def ignored(self) -> list[str]:
        """The field `image_tag`, which is accepted and not used."""
        return (
            [] if self.image_tag is None else [f"image_tag {self.image_tag!r}: there is one environment, the service's"]
        )


class PythonReward(HostedReward):
    """The reward of a `python` grader. `limits` are set by the operator, not the user; `level`: see `HostedReward`."""

    def __init__(
        self,
        spec: PythonSpec,
        rules: RewardPermissions | None = None,
        limits: ResourceLimits | None = None,
        level: SandboxLevel | None = None,
    ) -> None:
        code = Code(_SHOWN_AS, _ENTRY, "text", spec.timeout, param=_SHOWN_AS, source=spec.source)
        limits = limits or ResourceLimits(memory_bytes=_MEMORY_BYTES)
        super().__init__(code, spec.workers, rules or RewardPermissions(), limits, level)
