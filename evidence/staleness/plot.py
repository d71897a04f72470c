"""The picture of `run`: accuracy against the bound, ours beside AReaL's published table.

python -m evidence.staleness.plot evidence/results/staleness.json docs/images/staleness.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator, PercentFormatter

from headrace_lab.reports.plot_style import set_style

COLOURS = {"naive": "#c53030", "decoupled": "#2b6cb0"}
LABELS = {"naive": "naive: clip around the behaviour policy", "decoupled": "decoupled: clip around the proximal policy"}
AREAL = {
    "naive": (42.0, 41.8, 40.0, 23.3, 35.7, 35.8, 34.0),
    "decoupled": (None, 42.1, 41.8, 42.2, 41.0, 38.7, 36.9),
}
"""AReaL's AIME24 accuracy in percent, of a 1.5B model, at the same bounds; one run at 0 (arXiv 2505.24298)."""


def draw(result: dict[str, Any], image: Path) -> None:
    """Write the picture of what `staleness.py` reports."""
    set_style()
    figure, (ours, theirs) = plt.subplots(
        1, 2, figsize=(9.5, 3.8), width_ratios=(1.7, 1), layout="constrained", facecolor="white"
    )
    names = [_name(row["max_staleness"]) for row in result["table"]["decoupled"]]
    _ours(ours, result, names)
    _theirs(theirs, names)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=150)
    plt.close(figure)


def _ours(axes: Axes, result: dict[str, Any], names: list[str]) -> None:
    for arm, rows in result["table"].items():
        places = range(len(rows))
        axes.plot(places, [r["mean"] for r in rows], color=COLOURS[arm], marker="o", ms=5, lw=1.8, label=LABELS[arm])
        for place, row in enumerate(rows):
            seeds = row["accuracies"]
            axes.scatter([place] * len(seeds), seeds, s=14, color=COLOURS[arm], alpha=0.45, linewidths=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xticks(range(len(names)), names)
    seeds = len(result["table"]["decoupled"][0]["accuracies"])
    axes.set(
        title=f"Adder, {result['settings']['n_steps']} steps, {seeds} seeds",
        xlabel="age η of the training data, in versions",
        ylabel="held-out accuracy, greedy",
    )
    axes.legend(frameon=False, loc="lower left")


def _theirs(axes: Axes, names: list[str]) -> None:
    for arm, figures in AREAL.items():
        points = [(place, figure) for place, figure in enumerate(figures) if figure is not None]
        axes.plot(*zip(*points, strict=True), color=COLOURS[arm], marker="s", ms=4, lw=1.4)
    axes.set_xticks(range(len(names)), names)
    axes.yaxis.set_major_locator(MultipleLocator(5))
    axes.yaxis.set_major_formatter(PercentFormatter(100.0, decimals=0))
    axes.set(title="AReaL, as published", xlabel="staleness bound η", ylabel="AIME24, 1.5B model")


def _name(bound: int | None) -> str:
    return "∞" if bound is None else str(bound)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
