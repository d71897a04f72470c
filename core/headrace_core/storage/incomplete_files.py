"""What was half written when its process ended: nobody goes on with it, and it may be as large as a model.

Of a learner, folders with `.partial` after their name: one that goes on replaces them by itself, of a job that has
ended nobody would. Of a gateway, uploads and the rows of tasks; they are known by their age, since several gateways may
share a data folder.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

OLD_SECONDS = 3600.0
"""What a gateway is writing was written to in less: an upload is copied from the disk, a task has its time limit."""


def remove_partials(output: Path) -> None:
    """Delete those in a job's output folder, of checkpoints and of the trained model. Complete ones stay."""
    for partial in (*output.glob("*.partial"), *output.glob("checkpoints/*.partial")):
        shutil.rmtree(partial, ignore_errors=True)


def sweep(data_dir: Path) -> list[Path]:
    """Delete what gateways that died have left in the data folder; what it was."""
    swept = []
    for left in (*(data_dir / "files").glob(".*.partial"), *data_dir.glob(".task-*")):
        try:
            if time.time() - left.stat().st_mtime < OLD_SECONDS:
                continue
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        except FileNotFoundError:  # another gateway came first
            continue
        swept.append(left)
    return swept
