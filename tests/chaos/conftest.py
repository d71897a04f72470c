"""The campaign's modules are scripts beside each other: found as it finds them."""

import sys

from paths import ROOT

sys.path[:0] = [str(ROOT / "chaos")]
