"""What a job's learner had half written when it was ended: folders with `.partial` after their name.

A learner that goes on replaces them by itself. Of a job that has ended nobody would, and they are as large as a model.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def remove_partials(output: Path) -> None:
    """Delete those in a job's output folder, of checkpoints and of the trained model. Complete ones stay."""
    for partial in (*output.glob("*.partial"), *output.glob("checkpoints/*.partial")):
        shutil.rmtree(partial, ignore_errors=True)
