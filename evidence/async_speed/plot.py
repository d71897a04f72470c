"""The plot of `async_speed.py`, made from its JSON result alone: `docs/images/async_speed.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from headrace_lab.reports.plot_style import MUTED, set_style

BLUE, AMBER, GREY = "#2b6cb0", "#d69e2e", "#cbd5e0"


def plot(result: dict[str, Any], path: Path) -> None:
    """Left: throughput over that of η = 0, theirs and ours. Right: the service on this machine, bound by bound."""
    set_style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.9), dpi=140, layout="constrained", width_ratios=(2.2, 1))
    _curve(left, result["simulated"])
    _bars(right, result["real"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _curve(axes: Axes, simulated: dict[str, Any]) -> None:
    points = simulated["curve"]
    at = range(len(points))
    for key, colour, label in (("published", AMBER, "AReaL, as published"), ("relative", BLUE, "Headrace's scheduler")):
        values = [p[key] / points[0][key] for p in points]
        axes.plot(at, values, marker="o", color=colour, label=label, linewidth=2)
        for x, value in list(zip(at, values, strict=True))[1:]:
            below = value < max(p[k] / points[0][k] for p, k in ((points[x], "published"), (points[x], "relative")))
            axes.annotate(
                f"{value:.2f}", (x, value), (0, -15 if below else 7), textcoords="offset points", ha="center",
                color=colour, fontsize=8.5,
            )  # fmt: skip
    colocated = simulated["colocated"]["relative"]
    axes.axhline(colocated, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"synchronous on all devices, changing over for free: {colocated:.2f}", (len(points) - 1, colocated), (0, -13),
        textcoords="offset points", ha="right", color=MUTED, fontsize=8.5,
    )  # fmt: skip
    axes.set_xticks(list(at), [p["name"] for p in points])
    axes.set_xlabel("staleness bound η")
    axes.set_ylabel("trained tokens/s, η = 0 is 1")
    axes.set_ylim(0.7, 3.4)
    axes.set_title("Simulated: 1.5B on 16 nodes of 8 H800", fontsize=10.5, loc="left")
    axes.legend(frameon=False, loc="center right", fontsize=9)


def _bars(axes: Axes, real: dict[str, Any]) -> None:
    bounds = real["bounds"]
    base = bounds[0]["tokens_per_second"]
    names = [str(b["max_staleness"]) for b in bounds]
    values = [b["tokens_per_second"] / base for b in bounds]
    axes.bar(names, values, color=[GREY, *[BLUE] * (len(bounds) - 1)], width=0.55)
    for x, (value, bound) in enumerate(zip(values, bounds, strict=True)):
        axes.annotate(
            f"{value:.2f}\n{bound['tokens_per_second']:,.0f} tokens/s", (x, value), (0, 4),
            textcoords="offset points", ha="center", fontsize=8.5,
        )  # fmt: skip
    axes.set_xlabel("max_staleness")
    axes.set_ylim(0, max(values) * 1.2)
    axes.grid(axis="x", visible=False)
    axes.set_title("Measured: two cores, long-tailed task", fontsize=10.5, loc="left")
