"""How much evaluations slow down a job's training, by evaluation rows and number of rollout workers.

An evaluation keeps its worker at one policy version (decision 0029), so the worker takes no new groups once there is a
newer version. The real scheduler, workers and evaluator run in virtual time with simulated engines and training
(`headrace_lab.virtual.simulated_cluster`). The rollout workers together generate as fast as the learner trains, a step
has 256 completions of 512 tokens on average, and an evaluation is due every ten steps, the default in a job of a
hundred steps.

    lost       fraction of the training time with evaluations that is saved without them
    tokens     fraction of all generated tokens that belong to evaluations: what would be lost if evaluations did not
               overlap with training and caused no waiting

    python -m benchmarks.evaluation_cost [--seed N] [--out FILE]
"""

from __future__ import annotations

from typing import Any

from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.virtual.simulated_cluster import Cluster, Evaluations, measure
from headrace_lab.virtual.simulated_engine import DecodeSpeed, Lengths

MAX_EXCESS = 0.1
"""PASS: in all cases `lost` exceeds `tokens` by at most this."""
STALENESS, EVERY, WARM, STEPS = 4, 10, 10, 40
ROWS, WORKERS = (64, 256, 1024), (1, 2, 4)
SPEED = DecodeSpeed(base=0.02, each=0.0002, update_pause=0.5)
SLOTS, BATCH, GROUP, MEAN_LENGTH = 128, 32, 8, 512
FULL = SLOTS / (SPEED.base + SLOTS * SPEED.each)
"""Tokens per second of one device with all slots in use."""


def cluster(workers: int, seed: int) -> Cluster:
    """A cluster whose trainer is as fast as its devices; the batch grows with the number of devices."""
    return Cluster(
        rollout_devices=workers,
        speed=SPEED,
        slots=SLOTS,
        trained_per_second=FULL * workers,
        publish_seconds=1.0,
        batch_size=BATCH * workers,
        group_size=GROUP,
        lengths=Lengths(MEAN_LENGTH, 4 * MEAN_LENGTH, 0.05, seed),
    )


def cost(workers: int, staleness: int, rows: int, without: float, seed: int) -> dict[str, Any]:
    """Figures of a job with evaluations of `rows` rows, whose steps take `without` seconds without evaluations."""
    measured = measure(cluster(workers, seed), staleness, WARM, STEPS, Evaluations(rows, EVERY))
    completions_per_step = BATCH * GROUP * workers
    return {
        "workers": workers,
        "max_staleness": staleness,
        "rows": rows,
        "lost": 1 - without / measured.seconds,
        "tokens": rows / (rows + EVERY * completions_per_step),
    }


def main() -> None:
    options = arguments("evaluation_cost", __doc__).parse_args()
    costs = []
    for workers in WORKERS:
        for staleness in (0, STALENESS) if workers == 1 else (STALENESS,):
            without = measure(cluster(workers, options.seed), staleness, WARM, STEPS).seconds
            costs += [cost(workers, staleness, rows, without, options.seed) for rows in ROWS]
            for c in costs[-len(ROWS) :]:
                print(" ".join(f"{name}={value:.4g}" for name, value in c.items()), flush=True)
    beyond = max(c["lost"] - c["tokens"] for c in costs)
    one = {c["rows"]: c["lost"] for c in costs if c["workers"] == 1 and c["max_staleness"] == STALENESS}
    lost = ", ".join(f"{lost:.1%} at {rows} rows" for rows, lost in one.items())
    figures = f"lost with one worker {lost}; beyond the evaluations' tokens at most {beyond:.1%}"
    report("evaluation_cost", beyond <= MAX_EXCESS, figures, {"costs": costs}, options)


if __name__ == "__main__":
    main()
