"""The picture of `run`: accuracy by phrases alone, and by a reward model with and without them.

python -m evidence.reasoning_pattern.plot evidence/results/reasoning_pattern.json docs/images/reasoning_pattern.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from headrace_lab.reports.plot_style import set_style

PHRASES = {
    "right": ("#2f855a", "right answers"),
    "paper": ("#c53030", "phrases, the paper's scaling"),
    "code": ("#b7791f", "phrases, the code's scaling"),
}
MODELS = {
    "model": ("#4a5568", "reward model, 65 % right"),
    "calibrated": ("#2b6cb0", "the same, calibrated"),
}


def draw(result: dict[str, Any], image: Path) -> None:
    """Write the picture of what `reasoning_pattern.py` reports."""
    set_style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True, layout="constrained", facecolor="white")
    _courses(left, result, PHRASES)
    left.set(title="Rewarded for phrases alone", xlabel="step", ylabel="held-out accuracy, greedy")
    _courses(right, result, MODELS)
    right.set(title="Reward model, calibrated by phrases", xlabel="step")
    left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=150)
    plt.close(figure)


def _courses(axes: Axes, result: dict[str, Any], arms: Mapping[str, tuple[str, str]]) -> None:
    for arm, (colour, label) in arms.items():
        runs = [run for run in result["runs"] if run["arm"] == arm]
        for run in runs:
            axes.plot(run["steps"], run["accuracies"], color=colour, lw=0.8, alpha=0.4)
        mean = np.mean([run["accuracies"] for run in runs], axis=0)
        axes.plot(runs[0]["steps"], mean, color=colour, marker="o", ms=4, lw=2, label=label)
    axes.legend(frameon=False, loc="lower right" if len(arms) > 2 else "upper left")


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
