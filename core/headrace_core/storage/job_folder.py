"""Paths of a job's files.

    <data folder>/jobs/<job>/
        checkpoints/step-00000040/     the state after 40 steps: policy version 40
        model/                         the trained model, once all steps are done
        exports/tensorboard/           output of an export
        reward_code/                   the code of its reward functions, as it was when the job was submitted

A folder that is being written has the suffix `.partial`; a checkpoint that is newer than the ledger, `.ahead`.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .atomic_write import PARTIAL

AHEAD = ".ahead"
"""Suffix of a checkpoint that was put aside, because the ledger does not know its step."""
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
        """The folder of the trained model, which a finished job leaves."""
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
        """The output of the export to `target`."""
        return self.path / "exports" / target

    def checkpoint(self, version: int) -> Path:
        """The checkpoint of a policy version."""
        return self.checkpoints / f"step-{version:08d}"

    def completed_checkpoints(self) -> list[tuple[int, Path]]:
        """(policy version, folder) of each complete checkpoint, in no particular order."""
        named = [(path, _CHECKPOINT.fullmatch(path.name)) for path in self.checkpoints.glob("step-*")]
        return [(int(name[1]), path) for path, name in named if name]


def remove_partials(output: Path) -> None:
    """Delete the incomplete folders that a killed learner left in its job's folder.

    For a job that has ended: a learner that continues replaces them by itself.
    """
    for partial in (*output.glob(f"*{PARTIAL}"), *JobFolder(output).checkpoints.glob(f"*{PARTIAL}")):
        shutil.rmtree(partial, ignore_errors=True)
