"""Asynchronous against synchronous: AReaL's throughput by staleness bound, on its cluster simulated and on this machine.

Simulated: the scheduler that runs for real (ledger, staleness control, both workers) in virtual time, around devices as
fast as AReaL's were (`_areal.py`). Measured: the service on this machine, on the demo task with a heavy tail of lengths.

    python evidence/async_speed.py [--seed N] [--out FILE]
"""

from __future__ import annotations

# Written before the first run.
SIMULATED_SPEEDUP = 2.5
"""η = 4 over η = 0 on the 16-node cluster, the training devices apart in both; AReaL's is 2.77."""
REAL_SPEEDUP = 1.5
"""Trained tokens/s of the best bound over bound 0, both of the service here."""
