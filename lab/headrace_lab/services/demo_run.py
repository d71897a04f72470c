"""Runs `examples/adder/demo.py` and reads its results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..paths import ADDER
from ..reports.job_report import Record, steady_shares

DEMO = ADDER / "demo.py"
LIMIT_SECONDS = 1500


def run_demo(folder: Path, seed: int, **options: Any) -> dict[str, Any]:
    """Run the demo with `options` of its command line; returns its figures. Raises CalledProcessError if it fails."""
    extra = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(DEMO), "--seed", str(seed), "--out", str(folder), *extra]
    subprocess.run(command, check=True, timeout=LIMIT_SECONDS)
    saved = json.loads((folder / "report" / "record.json").read_text())
    record = Record(**saved)
    evaluations = record.of("evaluation")
    accuracies = [e["components"].get("correct", e["reward_mean"]) for e in evaluations]
    return {
        "max_staleness": record.hyperparameters["max_staleness"],
        "before": accuracies[0],
        "after": accuracies[-1],
        "accuracies": accuracies,
        "seconds": evaluations[-1]["time"] - evaluations[0]["time"],
        "largest_age": record.ledger["largest_age"],
        "masked_tokens": record.ledger["masked_tokens"],
        "balanced": record.ledger["balanced"],
        "busy": {s.worker: s.busy for s in steady_shares(record)},
    }
