"""Forks a job: creates a new job from a checkpoint, with the parent's settings except for those that the user changes.

Invariants: a fork is checked like any submission, and if it is refused, nothing is stored; the parent is only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from headrace_core.config.algorithm_presets import ALGORITHMS
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest
from headrace_core.types.job import ENDED, Checkpoint, ForkedFrom, Job

from ..context import GatewayContext
from ..schemas.base import RequestModel
from ..schemas.jobs import CreateJob, Integration, MetadataKey, MetadataValue, Method, Reference, Reinforcement
from ..web.errors import explain
from .idempotency import JobClaim
from .submission import submit

_INSTEAD = ({"n_steps", "n_epochs"}, {"learning_rate", "learning_rate_multiplier"})
"""Alternatives: setting one of a pair replaces the other."""
_NEAR = 5
"""Most checkpoints that an error lists."""


class ForkJob(RequestModel):
    """The body of POST …/fork: what is to be otherwise than in the job it comes from."""

    checkpoint: str | None = Field(None, max_length=200, description="Its id; null: the newest.")
    hyperparameters: dict[str, Any] = Field({}, description="Those that change: docs/settings.md.")
    suffix: str | None = Field(None, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    grader: dict[str, Any] | None = None
    training_file: Reference | None = None
    validation_file: Reference | None = Field(None, description="With null, the new job has none.")


async def fork(gateway: GatewayContext, parent_id: str, claim: JobClaim, body: ForkJob) -> Job:
    """Submit the new job. Raises `NotFound`, and an `InvalidRequest` that names the field of `body`."""
    parent = await gateway.jobs.get(parent_id)
    checkpoint = _chosen(parent, await gateway.jobs.checkpoints(parent_id), body.checkpoint)
    origin = ForkedFrom(parent_id, checkpoint.id, checkpoint.step)
    submission = _submission(parent, checkpoint, body)
    try:
        return await submit(gateway, claim, submission, origin)
    except InvalidRequest as error:
        raise _of_the_fork(error) from error


def _chosen(parent: Job, checkpoints: Sequence[Checkpoint], wanted: str | None) -> Checkpoint:
    """The checkpoint to fork from: the wanted one, or the newest. `checkpoints`: newest first."""
    if not checkpoints:
        hint = "submit a new job instead" if parent.status in ENDED else "wait for its first one, or pause the job"
        message = f"job {parent.id} has no checkpoint to start from: {hint}"
        raise InvalidRequest(message, param="checkpoint", code="no_checkpoint")
    checkpoint = checkpoints[0] if wanted is None else next((c for c in checkpoints if c.id == wanted), None)
    if checkpoint is None:
        newest = ", ".join(f"{c.id} (step {c.step})" for c in checkpoints[:_NEAR])
        message = f"job {parent.id} has no checkpoint {wanted!r}; its newest are {newest}"
        raise InvalidRequest(message, param="checkpoint", code="checkpoint_not_found")
    return checkpoint


def _submission(parent: Job, checkpoint: Checkpoint, body: ForkJob) -> CreateJob:
    """The request that a user would send to create the same job."""
    method = Reinforcement(
        grader=parent.grader if body.grader is None else body.grader,
        hyperparameters=_changed(parent, body.hyperparameters),
    )
    given = "validation_file" in body.model_fields_set
    return CreateJob(
        model=checkpoint.model,
        training_file=body.training_file or parent.training_file,
        validation_file=body.validation_file if given else parent.validation_file,
        method=Method(type="reinforcement", reinforcement=method),
        suffix=body.suffix or parent.suffix,
        seed=None,
        metadata=parent.metadata if body.metadata is None else body.metadata,
        integrations=[Integration.model_validate(integration) for integration in parent.integrations],
    )


def _changed(parent: Job, changes: dict[str, Any]) -> Hyperparameters:
    """The parent's complete settings with `changes`, without settings that a change replaces."""
    settings = parent.hyperparameters
    replaced = {name for names in _INSTEAD if names & changes.keys() for name in names}
    replaced |= _defaults_that_go(settings, changes) | _intervals_that_go(parent)
    unchanged = {name: value for name, value in settings.items() if name not in replaced}
    try:
        return Hyperparameters.model_validate(unchanged | changes)
    except ValidationError as error:
        problem = error.errors()[0]
        message, param, code = explain({**problem, "loc": ("hyperparameters", *problem["loc"])})
        raise InvalidRequest(message, param=param, code=code) from error


def _defaults_that_go(settings: dict[str, Any], changes: dict[str, Any]) -> set[str]:
    """Settings to drop if the algorithm changes: those with the default of the parent's algorithm."""
    old, new = (ALGORITHMS.get(str(of.get("algorithm"))) for of in (settings, changes))
    if old is None or new is None:
        return set()
    general = {name: field.default for name, field in Hyperparameters.model_fields.items()}
    before = general | dict(old.defaults)
    return {name for name in {*old.defaults, *new.defaults} if settings.get(name) == before[name]}


def _intervals_that_go(parent: Job) -> set[str]:
    """Intervals to drop because they are the default fraction of the parent's length: the new job may have another."""
    unset, steps = Hyperparameters.model_validate({}), parent.total_steps
    shares = {"eval_interval": unset.evaluation_interval(steps), "checkpoint_interval": unset.checkpoint_every(steps)}
    return {name for name, share in shares.items() if parent.hyperparameters.get(name) == share}


def _of_the_fork(error: InvalidRequest) -> InvalidRequest:
    """The same error, with the field names of the fork's body instead of the submission's."""
    message = error.message.replace("method.reinforcement.", "")
    param = (
        "checkpoint" if error.param == "model" else error.param and error.param.removeprefix("method.reinforcement.")
    )
    return type(error)(message, param=param, code=error.code)
