"""The modules of evidence/ can be imported by name."""

from __future__ import annotations

import sys

from paths import ROOT

sys.path.insert(0, str(ROOT / "evidence"))
