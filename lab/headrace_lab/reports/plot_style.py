"""The style of all plots: reports of jobs, and figures of benchmarks and evidence."""

from __future__ import annotations

from matplotlib import pyplot as plt

INK, MUTED, GRID = "#1b2733", "#6b7785", "#e3e8ee"


def set_style() -> None:
    """Set the style of all figures that this process draws from now on."""
    plt.switch_backend("Agg")  # works without a display
    plt.rcParams.update(
        {
            "font.size": 10,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": GRID,
            "axes.axisbelow": True,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
        }
    )
