"""`function`: a user's Python function, `path/file.py:name`, run in `workers` processes of its own: see `sandbox`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from headrace_core.reward_rules import RewardRules, SandboxLevel
from headrace_rewards.binding import Form
from headrace_rewards.sandbox.limits import Limits
from headrace_rewards.sandbox.reward import Code, HostedReward
from headrace_rewards.specs import GraderSpec


def _locate(reference: str) -> str:
    """`path/file.py:name` with the path made absolute; the file must exist."""
    path, colon, name = reference.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise ValueError(f"'{reference}' is not of the form path/file.py:function")
    file = Path(path).absolute()
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    return f"{file}:{name}"


class FunctionSpec(GraderSpec):
    """The function's arguments are filled by name (see `binding`); what it may return is listed in `values`."""

    type: Literal["function"]
    function: Annotated[str, AfterValidator(_locate)]
    """`path/file.py:name`; a relative path is taken from the working folder of whoever reads the spec first."""
    timeout: float = Field(default=30.0, gt=0, le=600)
    """Seconds for one completion, or for one group where the function takes groups."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that run the function side by side."""
    form: Form = "text"
    """What `prompt` and `completion` are: strings, or lists of messages."""


class FunctionReward(HostedReward):
    """`limits` are the operator's, not the user's; `level` is for tests, as in `HostedReward`."""

    def __init__(
        self,
        spec: FunctionSpec,
        rules: RewardRules | None = None,
        limits: Limits | None = None,
        level: SandboxLevel | None = None,
    ) -> None:
        path, _, name = spec.function.rpartition(":")
        code = Code(path, name, spec.form, spec.timeout, param="grader.function")
        super().__init__(code, spec.workers, rules or RewardRules(), limits or Limits(), level)
