"""`function`: a user's Python function, `path/file.py:name`, run in `workers` processes of its own: see `sandbox`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from headrace_core.config.reward_permissions import RewardPermissions, SandboxLevel
from headrace_core.errors import InvalidRequest

from .. import reward_code
from ..sandbox.hosted_reward import Code, HostedReward
from ..sandbox.kernel.resource_limits import ResourceLimits
from ..user_code.argument_binding import Form
from .spec import GraderSpec


def _locate(reference: str) -> str:
    """`path/file.py:name` with the path made absolute, and without `..`, which the system resolves by what is there.

    Nothing is looked up: who may not name a file must not learn from the answer whether it exists.
    """
    path, colon, name = reference.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise ValueError(f"'{reference}' is not of the form path/file.py:function")
    if not _can_be_a_path(path):
        raise ValueError(f"{path!r} cannot be the path of a file")
    return f"{os.path.abspath(path)}:{name}"


def _can_be_a_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _require_allowed(path: Path, rules: RewardPermissions) -> None:
    """A link leads where it leads: what counts is where the file really lies. The answer is the same for a file outside
    the folders that is not there, is a folder, or may not be read."""
    if rules.folders is None:
        return
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(folder)) for folder in rules.folders):
        listed = ", ".join(rules.folders) or "none"
        raise InvalidRequest(
            "functions are taken from files in the folders that the operator lists (HEADRACE_REWARD_FOLDERS: "
            f"{listed}); send the function's text as a grader of type 'python' instead, or ask the operator",
            param="grader.function",
        )


def _require_file(path: Path) -> None:
    """To be asked only once the file is known to be allowed."""
    if not os.path.isfile(path):
        raise InvalidRequest(f"there is no file {path}", param="grader.function")


class FunctionSpec(GraderSpec):
    """The function's arguments are filled by name (see `argument_binding`); what it may return is listed in
    `return_values`."""

    type: Literal["function"]
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", exclude_if=lambda value: value is None)
    """Of the code that a job was submitted with: the file and its neighbours that it imports (see `reward_code`). In a
    request: what it has to be."""
    function: Annotated[str, AfterValidator(_locate)]
    """`path/file.py:name`; a relative path is taken from the working folder of whoever reads the spec first."""
    timeout: float = Field(default=30.0, gt=0, le=600)
    """Seconds for one completion, or for one group where the function takes groups."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that run the function side by side."""
    form: Form | None = None
    """What `prompt` and `completion` are: strings, or lists of messages. Not given: found when the grader is tried, and
    strings where it is not."""

    @property
    def file(self) -> Path:
        """Where the function stands."""
        return Path(self.function.rpartition(":")[0])


class FunctionReward(HostedReward):
    """`limits` are the operator's, not the user's; `level` is for tests, as in `HostedReward`."""

    def __init__(
        self,
        spec: FunctionSpec,
        rules: RewardPermissions | None = None,
        limits: ResourceLimits | None = None,
        level: SandboxLevel | None = None,
    ) -> None:
        """Raises `InvalidRequest` where the operator allows no function of that file, it is not there, or its code was
        not kept."""
        rules = rules or RewardPermissions()
        _require_allowed(spec.file, rules)
        path, _, name = spec.function.rpartition(":")
        files = _kept(spec, rules)
        code = Code(path, name, spec.form or "text", spec.timeout, param="grader.function", files=files)
        super().__init__(code, spec.workers, rules, limits or ResourceLimits(), level)


def keep(spec: FunctionSpec, rules: RewardPermissions, folder: Path) -> FunctionSpec:
    """The description with the hash of its code, of which `folder` holds a copy from then on.

    Raises `InvalidRequest` where the operator allows no function of that file, and where the code cannot be kept, or is
    not what the description says.
    """
    _require_allowed(spec.file, rules)
    if spec.sha256 is not None and reward_code.kept(folder, spec.sha256) is not None:
        return spec
    code = _current(spec)
    return spec.model_copy(update={"sha256": reward_code.keep(code, folder)})


def _current(spec: FunctionSpec) -> reward_code.Code:
    """The code as it is now, if it is what the description says."""
    _require_file(spec.file)
    code = reward_code.collected(spec.file)
    found = reward_code.digest(code)
    if spec.sha256 not in (None, found):
        raise InvalidRequest(
            f"{spec.file}, with what it imports beside it, has the sha256 {found} and not {spec.sha256}: it has "
            "changed; leave sha256 out to take it as it is",
            param="grader.sha256",
        )
    return code


def _kept(spec: FunctionSpec, rules: RewardPermissions) -> dict[str, bytes]:
    """By absolute path; empty where no hash is given: the file is taken as it is."""
    if spec.sha256 is None:
        _require_file(spec.file)
        return {}
    if rules.code is None:
        return {str(spec.file.parent / path): content for path, content in _current(spec).items()}
    code = reward_code.kept(Path(rules.code), spec.sha256)
    if code is None:
        fault = f"the code that the job was submitted with has gone from {rules.code}; submit the job again"
        raise InvalidRequest(fault, param="grader.function")
    return {str(spec.file.parent / path): content for path, content in code.items()}
