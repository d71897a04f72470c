"""`function`: a user's Python function, `path/file.py:name`. It runs in `workers` processes of its own: see
`sandbox`."""

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
    """`path/file.py:name` with an absolute path, in which `..` is resolved without looking at the file system.

    The file system is not consulted: a caller who may not name a file must not learn from the answer whether it exists.
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
    """Raises `InvalidRequest` if the file, with links resolved, is outside the folders that the operator allows.

    Outside them the answer is the same for a file that exists, does not exist, is a folder, or cannot be read.
    """
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
    """Raises `InvalidRequest` if there is no such file. Call `_require_allowed` first: see there."""
    if not os.path.isfile(path):
        raise InvalidRequest(f"there is no file {path}", param="grader.function")


class FunctionSpec(GraderSpec):
    """A function whose arguments are filled by name (see `argument_binding`). `return_values` lists what it may
    return."""

    type: Literal["function"]
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", exclude_if=lambda value: value is None)
    """Hash of the code that a job was submitted with: the file, and the files beside it that it imports (see
    `reward_code`). In a request: the hash that the code must have."""
    function: Annotated[str, AfterValidator(_locate)]
    """`path/file.py:name`; a relative path is resolved in the working folder of the process that first parses the
    spec."""
    timeout: float = Field(default=30.0, gt=0, le=600)
    """Seconds for one completion, or for one group where the function takes groups."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that run the function side by side."""
    form: Form | None = None
    """Type of `prompt` and `completion`: strings, or lists of messages. If not given, a grader check finds out which
    works; without a check they are strings."""

    @property
    def file(self) -> Path:
        """The file with the function."""
        return Path(self.function.rpartition(":")[0])


class FunctionReward(HostedReward):
    """The reward of a `function` grader. `limits` are set by the operator, not the user; `level`: see
    `HostedReward`."""

    def __init__(
        self,
        spec: FunctionSpec,
        rules: RewardPermissions | None = None,
        limits: ResourceLimits | None = None,
        level: SandboxLevel | None = None,
    ) -> None:
        """Raises `InvalidRequest` if the operator does not allow the file, it does not exist, or its code was not
        stored."""
        rules = rules or RewardPermissions()
        _require_allowed(spec.file, rules)
        path, _, name = spec.function.rpartition(":")
        files = _stored_files(spec, rules)
        code = Code(path, name, spec.form or "text", spec.timeout, param="grader.function", files=files)
        super().__init__(code, spec.workers, rules, limits or ResourceLimits(), level)


def store_code(spec: FunctionSpec, rules: RewardPermissions, folder: Path) -> FunctionSpec:
    """Store a copy of the function's code in `folder`; returns the spec with the code's hash.

    Raises `InvalidRequest` if the operator does not allow the file, its code cannot be stored, or the code does not
    have the hash that the spec names.
    """
    _require_allowed(spec.file, rules)
    if spec.sha256 is not None and reward_code.load(folder, spec.sha256) is not None:
        return spec
    code = _read_code(spec)
    return spec.model_copy(update={"sha256": reward_code.store(code, folder)})


def _read_code(spec: FunctionSpec) -> reward_code.Code:
    """Read the code from its files. Raises `InvalidRequest` if it does not have the hash that the spec names."""
    _require_file(spec.file)
    code = reward_code.collect(spec.file)
    sha256 = reward_code.digest(code)
    if spec.sha256 not in (None, sha256):
        raise InvalidRequest(
            f"{spec.file}, with what it imports beside it, has the sha256 {sha256} and not {spec.sha256}: it has "
            "changed; leave sha256 out to take it as it is",
            param="grader.sha256",
        )
    return code


def _stored_files(spec: FunctionSpec, rules: RewardPermissions) -> dict[str, bytes]:
    """The stored code by absolute path; empty if the spec has no hash: then the file itself is loaded."""
    if spec.sha256 is None:
        _require_file(spec.file)
        return {}
    if rules.code is None:
        return {str(spec.file.parent / path): content for path, content in _read_code(spec).items()}
    code = reward_code.load(Path(rules.code), spec.sha256)
    if code is None:
        fault = f"the code that the job was submitted with has gone from {rules.code}; submit the job again"
        raise InvalidRequest(fault, param="grader.function")
    return {str(spec.file.parent / path): content for path, content in code.items()}
