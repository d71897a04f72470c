"""What evaluations cost a job's training: its time with them over its time without, by rows and rollout workers.

An evaluation holds its worker's policy version (decision 0029), so that the worker takes no new groups once there is a
newer one. The real scheduler, workers and evaluator run in virtual time around simulated engines and training
(`headrace_lab.virtual.simulated_cluster`). Rollout workers together generate as fast as the learner trains, a step is
256 completions of 512 tokens in the mean, and an evaluation is due every ten steps, as by default in a job of a
hundred.

    lost       share of the time with evaluations that is not there without
    tokens     share of all generated tokens that are the evaluations': lost if nothing overlaps and nothing waits

    python -m benchmarks.evaluation_cost [--seed N] [--out FILE]
"""

from __future__ import annotations

from typing import Any

from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.virtual.simulated_cluster import Cluster, Evaluations, measure
from headrace_lab.virtual.simulated_engine import DecodeSpeed, Lengths

MOST_BEYOND = 0.1
"""PASS: nowhere is more lost than the evaluations' tokens and this share of the time."""
STALENESS, EVERY, WARM, STEPS = 4, 10, 10, 40
ROWS, WORKERS = (64, 256, 1024), (1, 2, 4)
SPEED = DecodeSpeed(base=0.02, each=0.0002, update_pause=0.5)
SLOTS, BATCH, GROUP, MEAN_LENGTH = 128, 32, 8, 512
FULL = SLOTS / (SPEED.base + SLOTS * SPEED.each)
"""Tokens a second of one device that is full."""


def cluster(workers: int, seed: int) -> Cluster:
    """A trainer as fast as these devices. The job grows with them: each device's share of a step is the same."""
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
    """Of evaluations of so many rows in a job whose steps else take `without` seconds."""
    found = measure(cluster(workers, seed), staleness, WARM, STEPS, Evaluations(rows, EVERY))
    a_step = BATCH * GROUP * workers
    return {
        "workers": workers,
        "max_staleness": staleness,
        "rows": rows,
        "lost": 1 - without / found.seconds,
        "tokens": rows / (rows + EVERY * a_step),
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
    report("evaluation_cost", beyond <= MOST_BEYOND, figures, {"costs": costs}, options)


if __name__ == "__main__":
    main()
