"""Checkpoints on disk: everything a restarted learner needs to continue exactly where the old one was.

    <output_dir>/checkpoints/step-00000040/      the state after 40 steps: policy version 40
        state/…          torch.distributed.checkpoint: weights, optimizer state, random state
        model/…          the same weights as a model folder that loads anywhere
        manifest.json    written last: names every file with its size and CRC-32, summed as they are written

Invariants: a folder's name ends in `.partial` until all its files are synced to disk, so a folder without that suffix
is complete, also after a power loss; a checkpoint whose files differ from its manifest is never loaded, only reported;
a checkpoint newer than the ledger (the ledger lost the steps that led to it) is renamed to `.ahead`, so that it is
never mistaken for the state after the steps that are trained in their place.

With several ranks, every rank calls `save` and `load`, and each writes and reads its own shards in the shared folder;
rank 0 makes the folder, writes the model and, when everything is there, the manifest. A checkpoint can be loaded by any
number of ranks, whatever their number when it was saved.

Trust: torch.distributed.checkpoint stores its index (`.metadata`) as a pickle, which can run code when it is loaded.
We put only tensors into a checkpoint, so no other file is a pickle; and a checkpoint that another user of the machine
could have written is not loaded.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from headrace_core.errors import DiskFull
from headrace_core.redis_access.json_records import UNREADABLE
from headrace_core.storage import private_files
from headrace_core.storage.atomic_write import MANIFEST, PARTIAL, Manifest, remove, sync
from headrace_core.storage.disk_space import require_space
from headrace_core.storage.job_folder import AHEAD, JobFolder
from headrace_core.storage.summed_file import Fingerprint, fingerprint
from headrace_core.types.job import CHECKPOINT_MODEL

from ..training.trainer import Trainer
from .shard_writer import ShardWriter


@dataclass(frozen=True, slots=True)
class NewestCheckpoint:
    """The newest checkpoint that can be loaded."""

    path: Path | None
    """None: there is no checkpoint that can be loaded."""
    version: int
    """The policy version of the checkpoint; 0 (the base model) if there is none."""
    passed_over: tuple[str, ...]
    """Newer checkpoints that cannot be loaded, each as "folder name: reason"."""


def save(trainer: Trainer, output_dir: Path, version: int) -> Path:
    """Write the state after `version` steps; returns the checkpoint's folder, replacing one of the same version.

    Raises `DiskFull` if there is no space for it, and then leaves no partial folder.
    """
    final = JobFolder(output_dir).checkpoint(version)
    partial = final.with_name(final.name + PARTIAL)
    first = trainer.ranks.index == 0
    if first:
        remove(partial)
        partial.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.mkdir(mode=0o700)
    trainer.ranks.barrier()
    try:
        with require_space(partial, _bytes(trainer) if first else 0):
            known = _write(trainer, partial, first)
            if first:  # `dcp.save` returns when all ranks have written, so every shard is there
                _complete(partial, version, known)
    except DiskFull:
        if first:
            shutil.rmtree(partial)
        raise
    if first:
        remove(final)
        partial.rename(final)
        sync(final.parent)
    trainer.ranks.barrier()
    return final


def _write(trainer: Trainer, partial: Path, first: bool) -> dict[str, Fingerprint]:
    """Returns the fingerprints of all ranks' large files, by path within the folder."""
    writer = ShardWriter(partial / "state")
    try:
        with _one_process_is_fine():
            dcp.save(_state(trainer), storage_writer=writer, no_dist=trainer.ranks.size == 1)
    except CheckpointException as error:  # a BaseException: uncaught, it would end the process without a report
        raise OSError(f"{partial.name} could not be written: {error}") from error
    shards = writer.fingerprints(trainer.ranks, trainer.policy.device)
    model = trainer.policy.write_model(partial / CHECKPOINT_MODEL if first else None)
    return {f"state/{name}": found for name, found in shards.items()} | {
        f"{CHECKPOINT_MODEL}/{name}": found for name, found in model.items()
    }


def _bytes(trainer: Trainer) -> int:
    """Lower bound of a checkpoint's size in bytes: the weights and the optimizer state that exists by now."""
    size = 0
    for model_optimizer in trainer.optimizers.values():
        weights = sum(p.numel() * p.element_size() for p in model_optimizer.model.parameters())
        optimizer_tensors = (
            v
            for state in model_optimizer.optimizer.state.values()
            for v in state.values()
            if isinstance(v, torch.Tensor)
        )
        size += weights + sum(v.numel() * v.element_size() for v in optimizer_tensors)
    return size


def _complete(partial: Path, version: int, known: dict[str, Fingerprint]) -> None:
    """Write the manifest, and sync everything to disk. Files of unknown fingerprint, which are small, are read."""
    names = [str(file.relative_to(partial)) for file in sorted(partial.rglob("*")) if file.is_file()]
    if lacking := known.keys() - set(names):
        raise OSError(
            f"{partial.name} lacks {', '.join(sorted(lacking))}, which a rank has written: is the folder shared?"
        )
    files = {name: known[name] if name in known else fingerprint(partial / name) for name in names}
    Manifest(version, files).write(partial)
    for path in (*partial.rglob("*"), partial):
        # torch creates files by the umask, and `load` refuses what others may write to
        path.chmod(path.stat().st_mode & ~0o077)
        sync(path)


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Suppress torch 2.13's warning about saving without a process group, which it gives even with `no_dist`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def newest(output_dir: Path, ledger: int) -> NewestCheckpoint:
    """The newest checkpoint that is intact and not newer than policy version `ledger`, the ledger's.

    Checkpoints newer than the ledger are renamed to `.ahead`.
    """
    passed_over: list[str] = []
    for version, path in sorted(JobFolder(output_dir).completed_checkpoints(), reverse=True):
        if version > ledger:
            _put_aside(path)
            wrong: str | None = f"the ledger has lost the steps to it, and is at version {ledger}; put aside as {AHEAD}"
        else:
            wrong = _what_is_wrong(path, version)
        if wrong is None:
            return NewestCheckpoint(path, version, tuple(passed_over))
        passed_over.append(f"{path.name}: {wrong}")
    return NewestCheckpoint(None, 0, tuple(passed_over))


def _put_aside(path: Path) -> None:
    aside = path.with_name(path.name + AHEAD)
    remove(aside)
    path.rename(aside)
    sync(path.parent)


def load(trainer: Trainer, path: Path) -> None:
    """Restore weights, optimizer state and the CPU random state bit for bit."""
    state = _state(trainer)
    with _one_process_is_fine():
        dcp.load(state, checkpoint_id=path / "state", no_dist=trainer.ranks.size == 1)
    for name, model_optimizer in trainer.optimizers.items():
        set_model_state_dict(model_optimizer.model, state[name]["model"])
        current = get_optimizer_state_dict(model_optimizer.model, model_optimizer.optimizer)
        set_optimizer_state_dict(
            model_optimizer.model,
            model_optimizer.optimizer,
            # the learning rate and the other settings in `param_groups` are the job's, not the checkpoint's
            {"state": state[name]["optimizer"], "param_groups": current["param_groups"]},
        )
    torch.set_rng_state(state["random"]["cpu"])


def _state(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint holds: tensors only. Learning rate, β and weight decay are settings of the job, not state."""
    models = {
        name: {
            "model": get_model_state_dict(model_optimizer.model),
            "optimizer": get_optimizer_state_dict(model_optimizer.model, model_optimizer.optimizer)["state"],
        }
        for name, model_optimizer in trainer.optimizers.items()
    }
    return models | {"random": {"cpu": torch.get_rng_state()}}


def _what_is_wrong(path: Path, version: int) -> str | None:
    """Why the checkpoint cannot be loaded; None if it can. Reads all its files, to compare their checksums."""
    index = path / "state" / ".metadata"
    try:
        private_files.check(*(p for p in (path.parent, path, index.parent, index) if p.exists()))
    except PermissionError as error:
        return str(error)
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest[Fingerprint])
    except (OSError, *UNREADABLE) as error:
        return f"its {MANIFEST} cannot be read: {error}"
    if manifest.version != version:
        return f"its {MANIFEST} is of version {manifest.version}"
    for name, expected in manifest.files.items():
        try:
            if fingerprint(path / name) != expected:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None
