"""The picture of `run`: what is left of the gradient, and accuracy as training goes on.

python -m evidence.noisy_rewards.plot evidence/results/noisy_rewards.json docs/images/noisy_rewards.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from headrace_lab.reports.plot_style import set_style

COLOURS = {0.0: "#2f855a", 0.2: "#2b6cb0", 0.4: "#b7791f", 0.5: "#c53030"}
MARKERS = {"dr_grpo": "o", "grpo": "s", "ppo": "^"}


def draw(result: dict[str, Any], image: Path) -> None:
    """Write the picture of what `noisy_rewards.py` reports."""
    set_style()
    figure, (left, *others) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", facecolor="white")
    _slopes(left, result)
    for axes, learner in zip(others, ("grpo", "ppo"), strict=True):
        _course(axes, result, learner)
        axes.sharey(others[0])
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=150)
    plt.close(figure)


def _slopes(axes: Axes, result: dict[str, Any]) -> None:
    rows = [row for row in result["slopes"] if row["p"] is not None]
    axes.plot((0, 0.5), (1, 0), color="#4a5568", lw=1.2, ls="--", label="1 − 2p")
    for name, marker in MARKERS.items():
        axes.plot([r["p"] for r in rows], [r[name] for r in rows], marker, ms=6, alpha=0.75, label=name)
    axes.set(
        title="Gradient along the clean one",
        xlabel="share p of questions flipped",
        ylabel="slope",
        xlim=(0, 0.53),
        ylim=(-0.1, 1.05),
    )
    axes.legend(frameon=False)


def _course(axes: Axes, result: dict[str, Any], learner: str) -> None:
    for flip, colour in COLOURS.items():
        runs = [run for run in result["runs"] if (run["learner"], run["flip"]) == (learner, flip)]
        for run in runs:
            axes.plot(run["steps"], run["accuracies"], color=colour, lw=0.8, alpha=0.4)
        mean = np.mean([run["accuracies"] for run in runs], axis=0)
        axes.plot(runs[0]["steps"], mean, color=colour, marker="o", ms=4, lw=2, label=f"p = {flip:g}")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(title=f"{learner.upper()}, {len(runs)} seeds", xlabel="step", ylabel="held-out accuracy, greedy")
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.42))


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
