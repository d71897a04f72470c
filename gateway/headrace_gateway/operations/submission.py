"""Turns the body of a request into a job that can run; every error that can be detected is reported here, with the
name of its field."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError
from redis.exceptions import RedisError

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest, InvalidState, NotFound, Unavailable
from headrace_core.jobs.reward_code_folder import RewardCode
from headrace_core.logs import get_logger
from headrace_core.storage.dataset import Row, each_row
from headrace_core.types.job import ForkedFrom, Job

from ..context import GatewayContext
from ..files.file_store import StoredFile
from ..files.task_files import TaskFiles
from ..models.catalog import Model
from ..models.model_support import check_splittable, check_trainable, lacks_end_token
from ..models.prompt_process import PromptChecks
from ..models.prompt_tokens import Prompts
from ..schemas.jobs import CreateJob
from .cache_memory import check_caches
from .idempotency import JobClaim
from .memory_check import chosen, planned
from .remarks import Remark, min_completion_tokens, remarks

log = get_logger(__name__)

_SETTINGS = "method.reinforcement.hyperparameters"


async def submit(
    gateway: GatewayContext, claim: JobClaim, body: CreateJob, forked_from: ForkedFrom | None = None
) -> Job:
    """Check everything, store the job, start its controller; the job that another submission has stored under the same
    id meanwhile. What it raises, it raises before the job is stored: one that is stored is answered as such, whatever
    fails then."""
    settings = gateway.settings
    tasks = TaskFiles(gateway.files, settings.data_dir, settings.reward_rules, gateway.task_slots, claim.job_id)
    async with RewardCode(settings, claim.job_id, forked_from, claim.is_alone) as code:
        async with tasks:
            job, first, remarked = await _checked(gateway, claim.job_id, await _with_files(tasks, body))
            grader, tried = await _rehearsed(gateway, job, first, code.rules)
        job = msgspec.structs.replace(job, grader=grader, forked_from=forked_from)
        # If this raises, the files of tasks are kept, because the job may have been stored.
        if not await code.store(gateway.jobs, job):
            await tasks.remove()
            return await gateway.jobs.get(job.id)
    try:
        return await _hand_over(gateway, job, [*remarked, *tried])
    # the job is stored: an error response would claim the opposite
    except (RedisError, Unavailable, InvalidState) as error:
        log.warning("a job that was taken in is handed over later", job=job.id, error=str(error))
        return job


async def _hand_over(gateway: GatewayContext, job: Job, remarked: Sequence[Remark]) -> Job:
    """Emit the first events of a stored job, queue it and start it. If this fails, the gateway's reconciliation
    completes it (`RayControllerManager.reconcile`)."""
    of = job.forked_from
    origin = "" if of is None else f", from step {of.step_number} of {of.fine_tuning_job_id}"
    await gateway.jobs.emit_event(job.id, f"Created fine-tuning job: {job.id}{origin}")
    await gateway.jobs.emit_event(job.id, f"Files checked: {job.rows} prompts, {job.total_steps} steps")
    for level, remark in remarked:
        await gateway.jobs.emit_event(job.id, remark, level=level)
    await gateway.jobs.move(job.id, "queued")
    await gateway.jobs.emit_event(job.id, "Queued")
    queued = await gateway.jobs.get(job.id)
    await gateway.controllers.ensure(queued)
    return queued


async def _with_files(tasks: TaskFiles, body: CreateJob) -> CreateJob:
    """The body with every task reference replaced by the id of a file with the task's rows."""
    training = await tasks.file_id(body.training_file, "training_file")
    reference = body.validation_file
    validation = None if reference is None else await tasks.file_id(reference, "validation_file")
    return body.model_copy(update={"training_file": training, "validation_file": validation})


async def _rehearsed(
    gateway: GatewayContext, job: Job, first: Row, rules: RewardPermissions
) -> tuple[dict[str, Any], list[Remark]]:
    """(the grader with all defaults, remarks for the job's user)."""
    tolerant = job.hyperparameters["max_reward_failures"] >= 1.0
    model = Path(job.model_path)
    grader, notes = await gateway.trials.rehearsed(job.grader, rules, first, model, tolerant=tolerant)
    return grader, [("warn", remark) for remark in notes]


async def _checked(gateway: GatewayContext, job_id: str, body: CreateJob) -> tuple[Job, Row, list[Remark]]:
    """(the job, with its grader as given, its first row, remarks for its user)."""
    requested = settings = _seeded(body)
    check_caches(settings, gateway.settings, _SETTINGS)
    model = await gateway.models.resolve(body.model)
    training = await _file(gateway, body.training_file, "training_file")
    validation = None if body.validation_file is None else await _file(gateway, body.validation_file, "validation_file")
    context = model.context_for(settings, f"{_SETTINGS}.max_context")
    await asyncio.to_thread(check_trainable, model.path, settings.engine, context)
    devices = settings.tensor_parallel_size
    await asyncio.to_thread(check_splittable, model.path, devices, f"{_SETTINGS}.tensor_parallel_size")
    prompts = await _measured(gateway.prompts, training, model, context, settings)
    longest = prompts.longest
    if validation is not None:
        held_out = await _measured(gateway.prompts, validation, model, context, settings)
        longest = max(longest, held_out.longest, key=lambda prompt: prompt.tokens)
    settings = _completed(settings, context, longest.tokens, prompts.rows)
    given = requested.model_fields_set
    settings, plan = await asyncio.to_thread(planned, model.path, settings, given, gateway.settings, _SETTINGS)
    steps = settings.steps(prompts.rows)
    job = Job(
        id=job_id,
        owner=gateway.principal.name,
        created_at=time.time(),
        model=body.model,
        model_path=str(model.path),
        training_file=body.training_file,
        validation_file=body.validation_file,
        fingerprints={f.id: f.sha256 for _, f, _ in filter(None, (training, validation)) if f.sha256 is not None},
        suffix=body.suffix,
        seed=settings.seed,
        metadata=body.metadata or {},
        integrations=[integration.model_dump() for integration in body.integrations or ()],
        grader=body.method.reinforcement.grader,
        hyperparameters=settings.model_dump(),
        rows=prompts.rows,
        total_steps=steps,
        memory_plan=None if plan is None else msgspec.to_builtins(plan),
    )
    path, stored, _ = training
    first = await asyncio.to_thread(lambda: next(each_row(path, stored.filename)))
    endless = await asyncio.to_thread(lacks_end_token, model.path)
    notes = [*remarks(requested, settings, longest, steps, endless=endless), *chosen(plan)]
    return job, first, notes


def _seeded(body: CreateJob) -> Hyperparameters:
    settings = body.method.reinforcement.hyperparameters
    if body.seed is None:
        return settings
    if "seed" in settings.model_fields_set and settings.seed != body.seed:
        raise InvalidRequest(f"seed is given twice, as {body.seed} and as {settings.seed}", param="seed")
    return settings.model_copy(update={"seed": body.seed})


async def _file(gateway: GatewayContext, file_id: str, param: str) -> tuple[Path, StoredFile, str]:
    """(path of the content, the file's record, param)."""
    try:
        stored = await gateway.files.get(file_id)
    except NotFound as error:
        raise InvalidRequest(f"{param}: no file {file_id!r}", param=param, code="file_not_found") from error
    if stored.purpose != "fine-tune":
        message = f"{param}: {file_id} was uploaded for {stored.purpose!r}; upload it with the purpose 'fine-tune'"
        raise InvalidRequest(message, param=param, code="wrong_purpose")
    return gateway.files.path(file_id), stored, param


async def _measured(
    checks: PromptChecks, file: tuple[Path, StoredFile, str], model: Model, context: int, settings: Hyperparameters
) -> Prompts:
    path, stored, param = file
    name = stored.filename
    # A default completion length is shortened for long prompts, down to a minimum.
    completion = settings.max_tokens if "max_tokens" in settings.model_fields_set else min_completion_tokens(context)
    if completion >= context:
        message = f"max_tokens is {completion}, and the context {context}: no room for a prompt"
        raise InvalidRequest(message, param=f"{_SETTINGS}.max_tokens")
    try:
        return await checks.measured(model.path, path, name, stored.sha256, context - completion, model.vocabulary)
    except InvalidRequest as error:
        raise type(error)(error.message, param=error.param or param, code=error.code) from error


def _completed(settings: Hyperparameters, context: int, longest: int, rows: int) -> Hyperparameters:
    """The settings with every default filled in that depends on the model or the data."""
    steps = settings.steps(rows)
    given = "max_tokens" in settings.model_fields_set
    filled = {
        "n_epochs": settings.n_epochs if settings.n_steps is not None else settings.n_epochs or 1,
        "group_size": settings.explored_group_size,
        "compute_multiplier": None,
        "learning_rate": settings.peak_learning_rate,
        "learning_rate_multiplier": None,
        "max_context": context,
        "max_tokens": settings.max_tokens if given else min(settings.max_tokens, context - longest),
        "eval_interval": settings.evaluation_interval(steps),
        "checkpoint_interval": settings.checkpoint_every(steps),
    }
    try:
        return Hyperparameters.model_validate(settings.model_dump() | filled)
    except ValidationError as error:  # each setting was valid by itself
        problem = error.errors()[0]
        param = ".".join((_SETTINGS, *map(str, problem["loc"])))
        raise InvalidRequest(f"{param}: {problem['msg'].removeprefix('Value error, ')}", param=param) from error
