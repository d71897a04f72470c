"""Where a job's files are.

    <data folder>/jobs/<job>/
        checkpoints/step-00000040/     the state after 40 steps: policy version 40
        model/                         the trained model, once all steps are done
        exports/tensorboard/           what an export has written
        reward_code/                   the code of its reward functions, as it was when the job was submitted

A folder that is being written has `.partial` after its name, a checkpoint that is newer than the ledger `.ahead`.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .atomic_write import PARTIAL

AHEAD = ".ahead"
"""After the name of a checkpoint that was put aside."""
_CHECKPOINT = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class JobFolder:
    """The paths inside the folder of one job; none of them need exist."""

    path: Path

    @classmethod
    def of(cls, data_dir: Path, job_id: str) -> JobFolder:
        """The job's folder in a data folder, as an absolute path."""
        return cls(data_dir.absolute() / "jobs" / job_id)

    @property
    def model(self) -> Path:
        """The model folder that a finished job leaves."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.path / "checkpoints"

    @property
    def reward_code(self) -> Path:
        """The code of the job's reward functions."""
        return self.path / "reward_code"

    def export(self, target: str) -> Path:
        """What the export to `target` writes."""
        return self.path / "exports" / target

    def checkpoint(self, version: int) -> Path:
        """The checkpoint of a policy version."""
        return self.checkpoints / f"step-{version:08d}"

    def completed_checkpoints(self) -> list[tuple[int, Path]]:
        """(policy version, folder) of each checkpoint that was written to its end, in no order."""
        named = [(path, _CHECKPOINT.fullmatch(path.name)) for path in self.checkpoints.glob("step-*")]
        return [(int(name[1]), path) for path, name in named if name]


def remove_partials(output: Path) -> None:
    """Delete what a learner that died has left half written in its job's folder. One that goes on replaces it by
    itself; of a job that has ended nobody would."""
    for partial in (*output.glob(f"*{PARTIAL}"), *JobFolder(output).checkpoints.glob(f"*{PARTIAL}")):
        shutil.rmtree(partial, ignore_errors=True)
