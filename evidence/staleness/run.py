"""Accuracy against staleness: the decoupled loss holds where plain PPO's clip falls behind (AReaL, arXiv 2505.24298).

With a bound η, every step is trained on data exactly η versions old, the worst that the bound allows and what a
pipeline kept full comes to (but for the first η steps, whose data is the base model's). ∞: the sampler is never
refreshed, all data is the base model's. The learner is the real one (`lagged_training`), four minibatches a step, so
that the clip is alive; two arms differ in the policy loss alone:

    naive       the clip is around the behaviour policy, π_b: plain PPO
    decoupled   the clip is around the policy before the step, weighted by min(π_prox/π_b, 5)

A run's accuracy is the mean of its last evaluations, after a fixed number of steps: a loss that learns slower is
behind, though it may arrive later. An arm's accuracy at one bound is the mean over seeds.

What the settings were chosen from, seed 0, before the thresholds were written:

    learning rate 1.5e-4, 48 steps   at 0, 0.99 after 6 steps; decoupled at 8 alike, then between 0.95 and 1.00: eight
                                     versions are more than the whole of learning; naive at 8, 0.99 after 24
    learning rate 5e-5, 40 steps     at 0 and decoupled at 8, 1.00 after 16 steps and to the end; naive at 8, 0.94 after
                                     28 and 1.00 after 36; naive at 16, 0.72 after 32 and 0.83 after 40

The second, and twice the steps that learning takes at 0: 32. Naive at 1 to 4, decoupled at 16, and ∞ were not tried.
Seed 0 is not counted: the three counted seeds begin with 1. Every run starts at 0.55. A first counted run had seed 0
among its seeds.

How far it reaches. Naive is mostly slower here: its clip pins the policy to the one of η versions before; at ∞ it never
leaves the base model. Decoupled does not decline at 16 or ∞ as AReaL's does, because this task can be learned from the
base model's own samples (effective sample size 0.90 at ∞). Its own clip is hardly touched at this learning rate: what
differs is where the clip is centred, not the cap. At 1.5e-4, where eight versions are more than the whole of learning,
decoupled at 8 would have missed its 2 points.

    python -m evidence.staleness.run [--seed N] [--out FILE] [--image FILE]
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported, here and in the workers: two processes with two threads each would spin on each other.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from evidence.staleness.plot import draw
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_lab.paths import ROOT
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.training.lagged_training import LaggedRun, adder

# Written before the first counted run.
BOUNDS: tuple[int | None, ...] = (0, 1, 2, 4, 8, 16, None)
SEEDS, FIRST_COUNTED = 3, 1
"""Number of counted seeds, and the first, added to `--seed`: the settings were chosen with seed 0."""
HELD_UP_TO, WITHIN = 8, 0.02
"""PASS: at bounds up to the first, decoupled loses at most the second compared with its accuracy at bound 0."""
BEHIND_AT, BEHIND_BY = 16, 0.10
"""PASS: at the first bound, naive loses at least the second compared with its accuracy at bound 0; at bound 8 its
accuracy lies between those at 0 and 16; and at 8, 16 and ∞ it is below decoupled's."""

ARMS: dict[str, dict[str, Any]] = {
    "naive": {"proximal": "behaviour"},
    "decoupled": {"proximal": "recompute", "importance": "truncate", "importance_cap": 5.0},
}
STEPS, EVALUATE_EVERY, LAST_EVALUATIONS = 32, 2, 3
SETTINGS: dict[str, Any] = {
    "algorithm": "grpo",
    "n_steps": STEPS,
    "batch_size": 32,
    "group_size": 8,
    "minibatches": 4,
    "learning_rate": 5e-5,
    "max_tokens": 48,
    "max_context": 64,
}
PROCESSES = 2
LIMIT_SECONDS = 3600.0
"""Time limit of all runs together."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: an arm at one bound, with one seed."""

    arm: str
    bound: int | None
    seed: int

    @property
    def settings(self) -> Hyperparameters:
        """The run's settings. No token is masked: all data has exactly the age of the bound, or of all steps at ∞."""
        bound = STEPS if self.bound is None else self.bound
        return Hyperparameters.model_validate({**SETTINGS, **ARMS[self.arm], "max_staleness": bound, "seed": self.seed})


def main() -> None:
    parser = arguments("staleness", __doc__)
    parser.add_argument("--image", type=Path, default=ROOT / "docs" / "images" / "staleness.png")
    options = parser.parse_args()
    began = time.monotonic()
    runs = list(completed(options.seed))
    table = {arm: [row(runs, arm, bound) for bound in BOUNDS] for arm in ARMS}
    passed, figures = judge(table)
    result = {
        "settings": SETTINGS,
        "arms": ARMS,
        "seconds": round(time.monotonic() - began),
        "seeds": sorted({run["seed"] for run in runs}),
        "table": table,
        "runs": runs,
    }
    draw(result, options.image)
    report("staleness", passed, figures, result, options)


def completed(seed: int) -> Iterator[dict[str, Any]]:
    """Yield every run as it ends. Arms alternate, so that other load of the machine affects both."""
    cells = [Cell(arm, bound, seed + FIRST_COUNTED + i) for i in range(SEEDS) for bound in BOUNDS for arm in ARMS]
    pool = ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = [pool.submit(train, cell) for cell in cells]
        for number, future in enumerate(as_completed(futures, timeout=LIMIT_SECONDS), start=1):
            run = future.result()
            print(
                f"{number}/{len(cells)} {run['arm']}, bound {name(run['max_staleness'])}, seed {run['seed']}: "
                f"accuracy {run['accuracy']:.3f} in {run['seconds']:.0f} s",
                flush=True,
            )
            yield run
    finally:
        pool.shutdown(cancel_futures=True)


def train(cell: Cell) -> dict[str, Any]:
    """One run, in this process: its accuracy, and all its evaluations."""
    began = time.monotonic()
    run = LaggedRun(adder(), cell.settings, cell.bound)
    evaluations, rewards, clipped, effective = [run.accuracy()], [], [], []
    for version in range(1, STEPS + 1):
        groups, result = run.step()
        rewards.append(round(float(np.mean([c.reward for g in groups for c in g.completions])), 4))
        clipped.append(result.measured.clip_share)
        effective.append(result.measured.effective_sample_size)
        if version % EVALUATE_EVERY == 0:
            evaluations.append(run.accuracy())
    return {
        "arm": cell.arm,
        "max_staleness": cell.bound,
        "seed": cell.seed,
        "accuracy": float(np.mean(evaluations[-LAST_EVALUATIONS:])),
        "seconds": round(time.monotonic() - began, 1),
        "evaluate_every": EVALUATE_EVERY,
        "evaluations": [round(accuracy, 4) for accuracy in evaluations],
        "rewards": rewards,
        "clip_share": float(np.mean(clipped)),
        "smallest_effective_sample_size": min(effective),
    }


def row(runs: list[dict[str, Any]], arm: str, bound: int | None) -> dict[str, Any]:
    """One arm at one bound: each seed's accuracy, and their mean."""
    chosen = sorted((r for r in runs if r["arm"] == arm and r["max_staleness"] == bound), key=lambda r: r["seed"])
    accuracies = [r["accuracy"] for r in chosen]
    return {"max_staleness": bound, "accuracies": accuracies, "mean": float(np.mean(accuracies))}


def judge(table: dict[str, list[dict[str, Any]]]) -> tuple[bool, str]:
    """(whether every threshold is met, figures of the last line)."""
    mean = {arm: {r["max_staleness"]: r["mean"] for r in rows} for arm, rows in table.items()}
    naive, decoupled = mean["naive"], mean["decoupled"]
    held = min(decoupled[b] for b in BOUNDS if b is not None and b <= HELD_UP_TO) >= decoupled[0] - WITHIN
    falls = naive[BEHIND_AT] <= naive[0] - BEHIND_BY and naive[BEHIND_AT] < naive[HELD_UP_TO] < naive[0]
    behind = all(naive[b] < decoupled[b] for b in (HELD_UP_TO, BEHIND_AT, None))
    parts = [f"{name(b)}: {100 * naive[b]:.1f}/{100 * decoupled[b]:.1f}" for b in BOUNDS]
    return held and falls and behind, f"accuracy naive/decoupled, % at bound {', '.join(parts)}"


def name(bound: int | None) -> str:
    return "inf" if bound is None else str(bound)


if __name__ == "__main__":
    main()
