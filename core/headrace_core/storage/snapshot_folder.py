"""Where a learner's snapshots are: in the memory of its node, under a folder of the job.

    <root>/snapshots/<job>/rank-0-0, rank-0-1, …      written and read by the learner
    (`headrace_learner.checkpoints.memory_snapshot`)

The kernel owns them, no process does: they are there after any of ours was killed. So somebody must remove them: the
controller, once the job has ended.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def folder(root: Path, job_id: str) -> Path:
    """Of one job's snapshots on this node; may not exist."""
    return root / "snapshots" / job_id


def remove(root: Path, job_id: str) -> None:
    """Give a job's memory on this node back. Idempotent."""
    shutil.rmtree(folder(root, job_id), ignore_errors=True)
