"""The demo with max_staleness 0, 1 and 4: accuracy rises and no trained token is older than the bound.

Contract of docs/staleness.md, checked on real parts: each run is `examples/adder/demo.py` (real vLLM, Redis, Ray),
judged by `largest_age`, the ledger's record of what was trained: of every step the learner reports the largest age, and
the ledger refuses one that is too old (`StalenessBoundViolated`), so that a breach that is reported fails the job. One
run of each, from 0.55.

How far it reaches. Where the oldest token is younger than the bound, as at 4 here, the run never comes to the bound and
shows nothing of it. That the learner computes ages rightly is for the tests, not for this script.

    python -m evidence.staleness_bound.run [--seed N] [--out FILE]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.services.demo_run import run_demo

# Written before the first run.
BOUNDS = (0, 1, 4)
ACCURACY_BEFORE, ACCURACY_AFTER = 0.65, 0.95
TRAINING_SECONDS = 240.0
"""PASS: at most this from the first evaluation, when all workers are up, to the last."""
BUSY_SHARE = 0.85
"""PASS: if the pipeline is asynchronous, the busier of rollout worker and learner is busy for at least this fraction of
the time in steady state."""


def main() -> None:
    options = arguments("staleness_bound", __doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-evidence-") as folder:
        runs = [run_demo(Path(folder) / str(b), options.seed, max_staleness=b) for b in BOUNDS]
    figures = "; ".join(
        f"bound {r['max_staleness']}: oldest {r['largest_age']}, accuracy {r['before']:.2f} -> {r['after']:.2f} "
        f"in {r['seconds']:.0f} s, busiest {max(r['busy'].values()):.0%}"
        for r in runs
    )
    report("staleness_bound", all(holds(r) for r in runs), figures, {"runs": runs}, options)


def holds(run: dict[str, Any]) -> bool:
    """Whether one run meets every threshold."""
    return (
        run["balanced"]
        and run["largest_age"] <= run["max_staleness"]
        and run["before"] <= ACCURACY_BEFORE
        and run["after"] >= ACCURACY_AFTER
        and run["seconds"] <= TRAINING_SECONDS
        and (run["max_staleness"] == 0 or max(run["busy"].values()) >= BUSY_SHARE)
    )


if __name__ == "__main__":
    main()
