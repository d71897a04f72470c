"""`function`: a user's Python function, `path/file.py:name`, run in `workers` processes of its own: see `sandbox`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from headrace_core.errors import InvalidRequest
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


def _require_allowed(path: str, rules: RewardRules) -> None:
    """A link leads where it leads: what counts is where the file really lies."""
    if rules.folders is None:
        return
    real = Path(path).resolve()
    if not any(real.is_relative_to(Path(folder).resolve()) for folder in rules.folders):
        listed = ", ".join(rules.folders) or "none"
        raise InvalidRequest(
            "functions are taken from files in the folders that the operator lists (HEADRACE_REWARD_FOLDERS: "
            f"{listed}); send the function's text as a grader of type 'python' instead, or ask the operator",
            param="grader.function",
        )


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
        """Raises `InvalidRequest` where the operator allows no function of that file."""
        path, _, name = spec.function.rpartition(":")
        _require_allowed(path, rules or RewardRules())
        code = Code(path, name, spec.form, spec.timeout, param="grader.function")
        super().__init__(code, spec.workers, rules or RewardRules(), limits or Limits(), level)
