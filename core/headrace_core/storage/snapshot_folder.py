"""The folder of a learner's snapshots, in the memory of its node.

    <root>/snapshots/<job>/rank-0-0, rank-0-1, …      written and read by the learner
    (`headrace_learner.checkpoints.memory_snapshot`)

The snapshots are files in shared memory, so they outlive every process. The controller removes them once the job has
ended.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def folder(root: Path, job_id: str) -> Path:
    """The folder of one job's snapshots on this node; it may not exist."""
    return root / "snapshots" / job_id


def remove(root: Path, job_id: str) -> None:
    """Delete a job's snapshots on this node, which frees their memory. Idempotent."""
    shutil.rmtree(folder(root, job_id), ignore_errors=True)
