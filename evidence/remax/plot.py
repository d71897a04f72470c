"""The picture of `run`: gradient variance by success rate beside a reference band, and learning curves.

python -m evidence.remax.plot evidence/results/remax.json docs/images/remax.png
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from headrace_lab.reports.plot_style import MUTED, set_style

COLOURS = {"reinforce": "#c53030", "remax": "#2b6cb0", "ppo": "#2f855a"}
LABELS = {"reinforce": "REINFORCE", "remax": "ReMax", "ppo": "PPO with a critic"}
REFERENCE = {0.06: (1.6, 1.8), 0.25: (1.2, 1.3), 0.5: (0.8, 0.9), 0.7: (0.34, 0.47)}
"""Variance of ReMax's gradient over REINFORCE's for binary rewards, by mean success rate: known before this script."""
REFERENCE_OFFSETS = (0.05, 0.07)
"""The same ratio when each prompt's rewards have an offset of deviation σ = 5."""


def draw(result: dict[str, Any], image: Path) -> None:
    """Write the picture of what `remax.py` reports."""
    set_style()
    figure, (variances, *curves) = plt.subplots(
        1, 3, figsize=(12.5, 3.9), width_ratios=(1.25, 1, 1), layout="constrained", facecolor="white"
    )
    _variances(variances, result["gradients"])
    for axes, offset in zip(curves, sorted({run["offset"] for run in result["training"]}), strict=True):
        _curves(axes, [run for run in result["training"] if run["offset"] == offset], offset)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=150)
    plt.close(figure)


def _variances(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Binary rewards by success rate; rewards with offsets at the right edge."""
    binary = [r for r in rows if r["rewards"]["kind"] == "binary"]
    low, high = zip(*REFERENCE.values(), strict=True)
    axes.fill_between(list(REFERENCE), low, high, color="#cbd5e0", label="reference, by success rate")
    _points(axes, [r["mean_reward"] for r in binary], binary, COLOURS["remax"], "ours, binary rewards")
    task = [r for r in rows if r["rewards"]["kind"] == "task" and not r["rewards"]["offset"]]
    _points(axes, [r["mean_reward"] for r in task], task, "#6b46c1", "ours, the task's reward")
    offset = [r for r in rows if r["rewards"]["offset"]]
    place = 0.9
    axes.fill_between([place - 0.05, place + 0.05], *REFERENCE_OFFSETS, color="#f6d4a8", label="reference, offsets")
    _points(axes, [place] * len(offset), offset, "#c05621", "ours, offsets of σ = 5")
    for row in offset:
        axes.annotate(
            row["rewards"]["kind"], (place, row["ratio"]), (-22, -3), textcoords="offset points", ha="right", fontsize=8
        )
    axes.axhline(1.0, color=MUTED, lw=0.8, ls="--")
    axes.set_yscale("log")
    axes.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
    axes.set_xticks([0.06, 0.25, 0.5, 0.7, place], ["0.06", "0.25", "0.5", "0.7", "offsets"])
    axes.set(title="Gradient variance", xlabel="mean success rate", ylabel="ReMax's / REINFORCE's")
    axes.legend(frameon=False, loc="lower left", fontsize=8)


def _points(axes: Axes, places: list[float], rows: list[dict[str, Any]], colour: str, label: str) -> None:
    ratios = [r["ratio"] for r in rows]
    below = [r["ratio"] - r["ratio_90"][0] for r in rows]
    above = [r["ratio_90"][1] - r["ratio"] for r in rows]
    axes.errorbar(
        places, ratios, yerr=[below, above], fmt="o", ms=5, color=colour, elinewidth=1.2, capsize=2, label=label
    )


def _curves(axes: Axes, runs: list[dict[str, Any]], offset: float) -> None:
    """The mean over each learner's seeds, and single seeds as faint lines."""
    for name, colour in COLOURS.items():
        of = [run for run in runs if run["learner"] == name]
        for run in of:
            axes.plot(run["steps"], run["rewards"], color=colour, lw=0.8, alpha=0.3)
        means = [statistics.fmean(at) for at in zip(*(run["rewards"] for run in of), strict=True)]
        axes.plot(of[0]["steps"], means, color=colour, lw=1.8, marker="o", ms=3, label=LABELS[name])
    title = f"Offsets of σ = {offset:g} by prompt" if offset else "The task's reward"
    axes.set(title=title, xlabel="step", ylabel="held-out reward, greedy", ylim=(0, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, loc="lower right", fontsize=8)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
