"""Deletes a trained model: the folder of its checkpoint, and all of its names.

Invariants: no unfinished job needs what is deleted, neither the job that trained the model, which continues from its
checkpoints, nor one that started from the model; nothing outside the job's folder is deleted; a model's names are
removed before its files.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from headrace_core.errors import InvalidRequest, InvalidState
from headrace_core.jobs.job_store import JobStore
from headrace_core.storage.job_folder import JobFolder
from headrace_core.types.job import ENDED, Job

from ..context import GatewayContext


async def remove(gateway: GatewayContext, name: str) -> None:
    """Delete the trained model with that name. Raises `NotFound`, `InvalidRequest` for a base model, `InvalidState` if
    it is needed."""
    model = await gateway.models.get(name)
    trained = await gateway.models.trained(name)
    if trained is None:
        message = f"{name} is a base model: only trained models can be deleted"
        raise InvalidRequest(message, param="model", code="base_model")
    job, checkpoint = trained
    own = JobFolder(_real(JobFolder.of(gateway.settings.data_dir, job.id).path))
    folder = _real(checkpoint.path)
    if not folder.is_relative_to(own.checkpoints):
        raise InvalidState(f"{name} is not in the folder of its job, and is not touched", param="model")
    everyone = JobStore(gateway.redis)
    await _check_unneeded(everyone, name, job, folder)
    newest = (await everyone.checkpoints(job.id))[0].step == checkpoint.step
    await everyone.remove_checkpoint(job.id, checkpoint.step)
    await gateway.chats.end(model)
    await asyncio.to_thread(_delete, [folder, own.model] if newest else [folder])


async def _check_unneeded(everyone: JobStore, name: str, job: Job, folder: Path) -> None:
    for other in await everyone.all():
        if other.status in ENDED:
            continue
        if other.id == job.id:
            message = f"{name} cannot be deleted while its job is {other.status}, because the job goes on from it"
            raise InvalidState(f"{message}: cancel the job, or wait for its end", param="model")
        if _real(other.model_path).is_relative_to(folder):
            message = (
                f"{name} cannot be deleted while job {other.id} is {other.status}, because that job started from it"
            )
            raise InvalidState(f"{message}: cancel that job, or wait for its end", param="model")


def _real(path: str | Path) -> Path:
    """The path with all links resolved."""
    return Path(path).resolve()


def _delete(folders: list[Path]) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
