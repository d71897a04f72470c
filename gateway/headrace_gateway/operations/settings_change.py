"""Changes the settings of a running job: checks them like a submission, records them, and emits an event."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import ConfigDict, Field, ValidationError, model_validator

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest, InvalidState
from headrace_core.jobs.settings_log import CHANGEABLE, SettingChange, SettingsLog
from headrace_core.types.job import Job

from ..context import GatewayContext
from ..schemas.base import RequestModel
from ..schemas.control import SettingsObject
from ..web.errors import explain

_TRIES = 20


class ChangeSettings(RequestModel):
    """The settings to change, and their new values; the others stay."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    max_staleness: int | None = Field(None, ge=0, le=10**9)
    group_size: int | None = Field(None, ge=1, le=256)
    learning_rate: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        names = ", ".join(CHANGEABLE)
        if isinstance(given, dict):
            for name in given:
                if name not in CHANGEABLE:
                    raise ValueError(f"{name!r} cannot change while a job runs; these can: {names}")
            if not given:
                raise ValueError(f"name at least one setting to change: {names}")
        return given


async def change(gateway: GatewayContext, job_id: str, body: ChangeSettings) -> bool:
    """Record the changes, which take effect at the next policy version without claimed groups, and emit an event. False
    if all settings had the requested values already.

    Raises `InvalidRequest` for settings that are invalid together, `InvalidState` for a job that has ended.
    """
    values = body.model_dump(exclude_none=True)
    for _ in range(_TRIES):
        job = await gateway.jobs.get(job_id)
        live = await record(gateway, job)
        checked(live.newest.model_dump() | values, "")
        made = await live.change(values, gateway.principal.name)
        if made is not None:
            for line in made:
                await gateway.jobs.emit_event(job_id, describe_change(line))
            return bool(made)
    raise InvalidState(f"others change the settings of job {job_id} at this moment; try again")


async def record(gateway: GatewayContext, job: Job) -> SettingsLog:
    """The job's changes so far."""
    live = SettingsLog(gateway.redis, job.id, Hyperparameters.model_construct(**job.hyperparameters))
    await live.refresh()
    return live


async def shown(gateway: GatewayContext, job_id: str) -> SettingsObject:
    """The settings in force, and the changes that led to them."""
    job = await gateway.jobs.get(job_id)
    live = await record(gateway, job)
    return {
        "object": "fine_tuning.job.settings",
        "fine_tuning_job_id": job_id,
        "settings": job.hyperparameters,
        "changeable": list(CHANGEABLE),
        "changes": [msgspec.to_builtins(line) for line in live.changes],
    }


def describe_change(line: SettingChange) -> str:
    """The change as one line of text."""
    return f"{line.name} {line.before} → {line.after} from version {line.from_version}, by {line.by}"


def checked(settings: dict[str, Any], prefix: str) -> Hyperparameters:
    """Validate settings. Raises `InvalidRequest` if one of them, or their combination, is invalid."""
    try:
        return Hyperparameters.model_validate(settings)
    except ValidationError as error:
        problem: dict[str, Any] = dict(error.errors()[0])
        problem["loc"] = (*([prefix] if prefix else []), *problem["loc"])
        message, param, code = explain(problem)
        raise InvalidRequest(message, param=param, code=code) from error
