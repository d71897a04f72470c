"""Checkpoints: everything a new learner needs to go on as if nothing had happened.

    <output_dir>/checkpoints/step-00000040/      the state after 40 steps: policy version 40
        state/…          torch.distributed.checkpoint: weights, optimizer state, random state
        model/…          the same weights as a model folder that loads anywhere
        manifest.json    written last: names every file with its size and CRC-32

Invariants: the folder has `.partial` after its name until its manifest is written, so a folder without it is complete;
a checkpoint whose files are not those of its manifest is never loaded, only named.

A trainer of several ranks saves and loads as one: each rank calls, each writes and reads its own shards in the folder,
which they share; rank 0 makes the folder, writes the model and, when all is there, the manifest. How many ranks there
were when it was saved does not matter to those that load it.

Trust: torch.distributed.checkpoint keeps its index (`.metadata`) as a pickle. Only tensors are put into it, so nothing
else is one; the folder must be writable by the service alone, as the whole data folder must.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from headrace_core.jobs import CHECKPOINT_MODEL

from .trainer import Trainer

MANIFEST = "manifest.json"
PARTIAL = ".partial"
_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """The newest complete checkpoint, if there is one, and the newer ones that are damaged, each with what is wrong."""

    path: Path | None
    version: int
    """The policy version that it holds; 0, the base model, without one."""
    damaged: tuple[str, ...]


def save(trainer: Trainer, output_dir: Path, version: int) -> Path:
    """Write the state after `version` steps; returns the checkpoint's folder. One that is there already is replaced."""
    final = output_dir / "checkpoints" / f"step-{version:08d}"
    partial = final.with_name(final.name + PARTIAL)
    first = trainer.ranks.index == 0
    if first:
        for old in (partial, final):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
    trainer.ranks.barrier()
    with _one_process_is_fine():
        dcp.save(_state(trainer), checkpoint_id=partial / "state", no_dist=trainer.ranks.size == 1)
    trainer.policy.write_model(partial / CHECKPOINT_MODEL if first else None)
    if first:  # every rank's shards are there: `dcp.save` returns when all have written
        _complete(partial, version)
        partial.rename(final)
    trainer.ranks.barrier()
    return final


def _complete(partial: Path, version: int) -> None:
    files = {str(f.relative_to(partial)): _fingerprint(f) for f in sorted(partial.rglob("*")) if f.is_file()}
    _write_through(partial / MANIFEST, json.dumps({"version": version, "files": files}))


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """A learner of one process is what was asked for; torch 2.13 warns of it whatever `no_dist` says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def newest(output_dir: Path) -> Found:
    """Look from the newest back to the first that is whole; changes nothing."""
    damaged: list[str] = []
    for path in sorted((output_dir / "checkpoints").glob("step-*"), reverse=True):
        if path.name.endswith(PARTIAL):
            continue
        wrong = _what_is_wrong(path)
        if wrong is None:
            return Found(path, json.loads((path / MANIFEST).read_text())["version"], tuple(damaged))
        damaged.append(f"{path.name}: {wrong}")
    return Found(None, 0, tuple(damaged))


def load(trainer: Trainer, path: Path) -> None:
    """Bring weights, optimizer and random state to what they were, bit for bit."""
    state = _state(trainer)
    with _one_process_is_fine():
        dcp.load(state, checkpoint_id=path / "state", no_dist=trainer.ranks.size == 1)
    for name, descent in trainer.descents.items():
        set_model_state_dict(descent.model, state[name]["model"])
        whole = get_optimizer_state_dict(descent.model, descent.optimizer)
        set_optimizer_state_dict(
            descent.model,
            descent.optimizer,
            {"state": state[name]["optimizer"], "param_groups": whole["param_groups"]},
        )
    torch.set_rng_state(state["random"]["cpu"])


def _state(trainer: Trainer) -> dict[str, Any]:
    """Tensors only. Learning rate, β and decay are settings of the job, not state."""
    models = {
        name: {
            "model": get_model_state_dict(descent.model),
            "optimizer": get_optimizer_state_dict(descent.model, descent.optimizer)["state"],
        }
        for name, descent in trainer.descents.items()
    }
    return models | {"random": {"cpu": torch.get_rng_state()}}


def _what_is_wrong(path: Path) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            if _fingerprint(path / name) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _fingerprint(file: Path) -> list[int]:
    """[size in bytes, CRC-32]."""
    size = crc = 0
    with file.open("rb") as content:
        while part := content.read(_READ):
            size += len(part)
            crc = zlib.crc32(part, crc)
    return [size, crc]


def _write_through(file: Path, text: str) -> None:
    with file.open("w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
