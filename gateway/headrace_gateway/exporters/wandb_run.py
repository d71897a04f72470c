"""A run at Weights & Biases. It has the job's id, so that an exporter that is restarted continues the same run.

wandb's own variables set the account and the server: `WANDB_API_KEY`, `WANDB_BASE_URL`, `WANDB_MODE=offline`. Each
entry is logged at its number in the job's history, because wandb ignores entries with a number that it has already.
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
            # wandb must not record this process: its output, its machine's statistics, its folder's git state.
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
            ),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, entry: SinkEntry, point: Point) -> None:
        if point.values:
            self._run.log({**point.values, "step": point.step}, step=entry.number)

    def flush(self) -> int:
        """Always 0: wandb's own process writes the entries, and `close` waits for it."""
        return 0

    def close(self) -> None:
        self._run.finish()
