"""The modules of simulation/ can be imported by name, and what they share with evidence/ and benchmarks/."""

from __future__ import annotations

import sys

from paths import ROOT

sys.path[:0] = [str(ROOT / folder) for folder in ("simulation", "evidence", "benchmarks")]
