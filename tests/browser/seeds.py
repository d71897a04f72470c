"""Jobs for pages to show: the benchmark's, which look as if they had run."""

from __future__ import annotations

import sys

from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from _seeded import BATCH, BOUND, Seeded

__all__ = ["BATCH", "BOUND", "Seeded"]
