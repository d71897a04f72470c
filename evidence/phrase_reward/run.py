"""The demo rewarded for the reasoning phrase alone: accuracy rises all the same, with no correctness signal at all.

After "The Climb Carves Wisdom Deeper Than the Summit" (arXiv 2505.22653), whose reasoning pattern reward lifts a 7B
model without any check of the answer. Here on the tiny adder, whose phrase goes with spelling out the carry: that it
does is how the model was made, an input. One run, from 0.55; its peak is the best of its evaluations.
`reasoning_pattern.py` runs more seeds, beside runs by right answers that are as long.

    python -m evidence.phrase_reward.run [--seed N] [--out FILE]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.services.demo_run import run_demo

# Written before the first run.
ACCURACY_BEFORE, PEAK_ACCURACY = 0.65, 0.90


def main() -> None:
    options = arguments("phrase_reward", __doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-evidence-") as folder:
        run = run_demo(Path(folder) / "phrase", options.seed, reward="phrase")
    peak = max(run["accuracies"])
    figures = f"accuracy {run['before']:.2f} -> {peak:.2f} at its peak, {run['after']:.2f} at the end"
    passed = run["balanced"] and run["before"] <= ACCURACY_BEFORE and peak >= PEAK_ACCURACY
    report("phrase_reward", passed, figures, {"run": run}, options)


if __name__ == "__main__":
    main()
