"""A run at Weights & Biases: the job's id is the run's, so that a follower that starts again goes on with it.

Where, and whether at all, it is sent is wandb's own to say: `WANDB_API_KEY`, `WANDB_BASE_URL`, `WANDB_MODE=offline`.
Each entry is logged at its number in the job's history: wandb ignores what it was sent before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from .series import Point
from .sink import SinkEntry


class WandbRun:
    """See `Sink`, and the module."""

    def __init__(self, folder: Path, job: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self._run = wandb.init(
            project=options.get("project") or "headrace",
            entity=options.get("entity"),
            name=options.get("name") or job["id"],
            tags=options.get("tags") or None,
            id=job["id"],
            resume="allow",
            dir=str(folder),
            config={"model": job["model"], **job["hyperparameters"]},
            # Of this process there is nothing to tell: neither what it prints, nor its machine, nor its folder's git.
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
            ),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, entry: SinkEntry, point: Point) -> None:
        if point.values:
            self._run.log({**point.values, "step": point.step}, step=entry.number)

    def flush(self) -> int:
        """wandb's own process writes what it was given; it is waited for at the end."""
        return 0

    def close(self) -> None:
        self._run.finish()
