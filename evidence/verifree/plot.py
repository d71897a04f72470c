"""The picture of `run`: variances beside the verifier's, and held-out accuracy by step.

python -m evidence.verifree.plot evidence/results/verifree.json docs/images/verifree.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from headrace_lab.reports.plot_style import MUTED, set_style

COLOURS = {"verifree": "#2b6cb0", "verifier": "#2f855a", "no_baseline": "#c53030"}
LABELS = {"verifree": "VeriFree", "verifier": "exact-match verifier", "no_baseline": "VeriFree without baseline"}


def draw(result: dict[str, Any], image: Path) -> None:
    """Write the picture of what `verifree.py` reports."""
    set_style()
    figure, (variances, curves) = plt.subplots(
        1, 2, figsize=(10.5, 3.9), width_ratios=(1, 1.4), layout="constrained", facecolor="white"
    )
    _variances(variances, result["exact"])
    _curves(curves, result["training"], result["target"])
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=150)
    plt.close(figure)


def _variances(axes: Axes, exact: dict[str, Any]) -> None:
    one, group = exact["one_sample"], exact["leave_one_out"]
    formula = [of["p2_over_p"] for of in one]
    axes.plot(formula, [of["variance_ratio_of_reasoning"] for of in one], "o", color=COLOURS["verifree"], ms=6)
    axes.plot(formula, [of["variance_ratio"] for of in one], "o", mfc="none", color=COLOURS["verifree"], ms=6)
    ratio, (low, high) = group["variance_ratio"], group["variance_ratio_90"]
    axes.errorbar(formula[:1], [ratio], [[ratio - low], [high - ratio]], fmt="s", color="#b7791f", capsize=3, ms=5)
    top = 1.15 * max(*formula, high, *(of["variance_ratio_of_reasoning"] for of in one))
    axes.plot([0, top], [0, top], color=MUTED, lw=1.2, ls="--")
    axes.legend(
        ["one sample, reasoning's term", "one sample, whole", "variance ratio = E p²/E p", "leave-one-out, trainer"],
        frameon=False,
        loc="upper left",
        fontsize=8,
    )
    axes.set(title="Gradient variance / the verifier's", xlabel="E p²/E p", xlim=(0, top), ylim=(0, 1.25 * top))


def _curves(axes: Axes, runs: list[dict[str, Any]], target: float) -> None:
    for run in runs:
        colour = COLOURS[run["arm"]]
        first = run["seed"] == min(r["seed"] for r in runs)
        label = LABELS[run["arm"]] if first else None
        axes.plot(run["steps"], run["accuracies"], color=colour, lw=1.4, alpha=0.75, label=label)
        if run["reached"] is not None:
            axes.plot(run["steps"][-1], run["accuracies"][-1], "o", color=colour, ms=5)
    axes.axhline(target, color=MUTED, lw=1.2, ls="--")
    axes.set(title="Held-out accuracy, greedy; a line is a seed", xlabel="step", ylim=(0.4, 1.02), xlim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, loc="upper left", fontsize=8)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
