"""Checkpoints: everything a new learner needs to go on as if nothing had happened.

    <output_dir>/checkpoints/step-00000040/      the state after 40 steps: policy version 40
        state/…          torch.distributed.checkpoint: weights, optimizer state, random state
        model/…          the same weights as a model folder that loads anywhere
        manifest.json    written last: names every file with its size and CRC-32

Invariants: the folder has `.partial` after its name until all of it is on the disk, so a folder without it is complete,
also after a loss of power; a checkpoint whose files are not those of its manifest is never loaded, only named; one that
is newer than the ledger, which lost the steps to it, is put aside (`.ahead`), so that it is never taken for the other
steps that take their place.

A trainer of several ranks saves and loads as one: each rank calls, each writes and reads its own shards in the folder,
which they share; rank 0 makes the folder, writes the model and, when all is there, the manifest. How many ranks there
were when it was saved does not matter to those that load it.

Trust: torch.distributed.checkpoint keeps its index (`.metadata`) as a pickle. Only tensors are put into it, so nothing
else is one; a checkpoint that another user of the machine may have written is not loaded.
"""

from __future__ import annotations

import shutil
import warnings
import zlib
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
from headrace_core.jobs.job_store import CHECKPOINT_MODEL
from headrace_core.redis_access.json_records import UNREADABLE
from headrace_core.storage import private_files
from headrace_core.storage.atomic_write import MANIFEST, PARTIAL, Manifest, remove, sync
from headrace_core.storage.disk_space import require_space
from headrace_core.storage.job_folder import AHEAD, JobFolder

from ..training.trainer import Trainer

_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """The newest complete checkpoint, if there is one, and the newer ones, each with what is wrong."""

    path: Path | None
    version: int
    """The policy version that it holds; 0, the base model, without one."""
    passed_over: tuple[str, ...]


def save(trainer: Trainer, output_dir: Path, version: int) -> Path:
    """Write the state after `version` steps; returns the checkpoint's folder. One that is there already is replaced.

    Raises `DiskFull` where there is no room for it, and leaves nothing of it.
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
            _write(trainer, partial, first)
            if first:  # every rank's shards are there: `dcp.save` returns when all have written
                _complete(partial, version)
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


def _write(trainer: Trainer, partial: Path, first: bool) -> None:
    try:
        with _one_process_is_fine():
            dcp.save(_state(trainer), checkpoint_id=partial / "state", no_dist=trainer.ranks.size == 1)
    except CheckpointException as error:  # a BaseException: it would end the process, and nobody would hear why
        raise OSError(f"{partial.name} could not be written: {error}") from error
    trainer.policy.write_model(partial / CHECKPOINT_MODEL if first else None)


def _bytes(trainer: Trainer) -> int:
    """What a checkpoint needs at least: weights, and what the optimizer keeps of them by now."""
    size = 0
    for model_optimizer in trainer.optimizers.values():
        weights = sum(p.numel() * p.element_size() for p in model_optimizer.model.parameters())
        kept = (
            v
            for state in model_optimizer.optimizer.state.values()
            for v in state.values()
            if isinstance(v, torch.Tensor)
        )
        size += weights + sum(v.numel() * v.element_size() for v in kept)
    return size


def _complete(partial: Path, version: int) -> None:
    files = {str(f.relative_to(partial)): _fingerprint(f) for f in sorted(partial.rglob("*")) if f.is_file()}
    Manifest(version, files).write(partial)
    for path in (*partial.rglob("*"), partial):
        path.chmod(path.stat().st_mode & ~0o077)  # torch goes by the umask; what others may write to is not loaded
        sync(path)


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """A learner of one process is what was asked for; torch 2.13 warns of it whatever `no_dist` says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def newest(output_dir: Path, ledger: int) -> Found:
    """Look from the newest back to the first that is whole and not newer than the ledger's policy version.

    Those that are newer are put aside.
    """
    passed_over: list[str] = []
    for version, path in sorted(JobFolder(output_dir).completed_checkpoints(), reverse=True):
        if version > ledger:
            _put_aside(path)
            wrong: str | None = f"the ledger has lost the steps to it, and is at version {ledger}; put aside as {AHEAD}"
        else:
            wrong = _what_is_wrong(path, version)
        if wrong is None:
            return Found(path, version, tuple(passed_over))
        passed_over.append(f"{path.name}: {wrong}")
    return Found(None, 0, tuple(passed_over))


def _put_aside(path: Path) -> None:
    aside = path.with_name(path.name + AHEAD)
    remove(aside)
    path.rename(aside)
    sync(path.parent)


def load(trainer: Trainer, path: Path) -> None:
    """Bring weights, optimizer and random state to what they were, bit for bit."""
    state = _state(trainer)
    with _one_process_is_fine():
        dcp.load(state, checkpoint_id=path / "state", no_dist=trainer.ranks.size == 1)
    for name, model_optimizer in trainer.optimizers.items():
        set_model_state_dict(model_optimizer.model, state[name]["model"])
        whole = get_optimizer_state_dict(model_optimizer.model, model_optimizer.optimizer)
        set_optimizer_state_dict(
            model_optimizer.model,
            model_optimizer.optimizer,
            {"state": state[name]["optimizer"], "param_groups": whole["param_groups"]},
        )
    torch.set_rng_state(state["random"]["cpu"])


def _state(trainer: Trainer) -> dict[str, Any]:
    """Tensors only. Learning rate, β and decay are settings of the job, not state."""
    models = {
        name: {
            "model": get_model_state_dict(model_optimizer.model),
            "optimizer": get_optimizer_state_dict(model_optimizer.model, model_optimizer.optimizer)["state"],
        }
        for name, model_optimizer in trainer.optimizers.items()
    }
    return models | {"random": {"cpu": torch.get_rng_state()}}


def _what_is_wrong(path: Path, version: int) -> str | None:
    index = path / "state" / ".metadata"
    try:
        private_files.check(*(p for p in (path.parent, path, index.parent, index) if p.exists()))
    except PermissionError as error:
        return str(error)
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest[tuple[int, int]])
    except (OSError, *UNREADABLE) as error:
        return f"its {MANIFEST} cannot be read: {error}"
    if manifest.version != version:
        return f"its {MANIFEST} is of version {manifest.version}"
    for name, expected in manifest.files.items():
        try:
            if _fingerprint(path / name) != expected:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _fingerprint(file: Path) -> tuple[int, int]:
    """(size in bytes, CRC-32)."""
    size = crc = 0
    with file.open("rb") as content:
        while part := content.read(_READ):
            size += len(part)
            crc = zlib.crc32(part, crc)
    return size, crc
