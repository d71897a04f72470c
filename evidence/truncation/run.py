"""Returns of completions that `max_tokens` cut off: ended there, a policy learns to end in time; bootstrapped, less so.

PPO with a critic on the adder, by the real trainer on data of its newest version, with `max_tokens` 24, where its
completions have 23 tokens in the mean: near a fifth of them are cut off at the start, before they say an answer, and
are scored as they stand. The two arms differ in the setting `truncation` alone, and sample the same first batch. See
decision 0046.

What the default was chosen from, seeds 100 and 101, by a first form of this run: of the last six steps' completions 1.6
and 0.9 % were cut off with `end`, 9.2 and 6.4 % with `bootstrap`. These seeds are not counted: the counted ones are 1
to 3. Rewards differ little in so few steps; they are in the table, and no threshold.

How far it reaches. The mean over seeds is one seed's: with `bootstrap` seed 3 comes to run into `max_tokens` in a third
of its completions, and stays there; in the other two the share is 1.6 times that of `end`. A first counted run asked
for a tenth cut off in the mean of the first six steps, in which most of the fall happens (seed 3: 9.5 and 9.6 %); it is
asked of the first step now, before anything was learned. The runs are the same.

    python -m evidence.truncation.run [--seed N] [--out FILE]
"""

from __future__ import annotations

import os
import statistics
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported


import torch

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.training.lagged_training import LaggedRun, adder

# Written before the counted run.
SHARE_OF_BOOTSTRAP = 0.5
"""PASS: in the last steps, completions cut off with `end` are at most this fraction of those with `bootstrap`."""
CUT_AT_FIRST = 0.1
"""PASS: in the first step of every run, more than this fraction is cut off: otherwise there is nothing to learn."""

ARMS = ("end", "bootstrap")
FIRST_COUNTED, SEEDS = 1, 3
"""First counted seed, added to `--seed`, and number of seeds."""
STEPS, WINDOW = 36, 6
"""Steps of a run, and number of last steps that are averaged."""
SETTINGS: dict[str, Any] = {
    "algorithm": "ppo",
    "batch_size": 16,
    "group_size": 8,
    "max_tokens": 24,
    "max_context": 128,
    "learning_rate": 3e-4,
    "n_steps": STEPS,
}


def main() -> None:
    options = arguments("truncation", __doc__).parse_args()
    torch.set_num_threads(1)
    seeds = [options.seed + FIRST_COUNTED + i for i in range(SEEDS)]
    runs = [run(arm, seed) for seed in seeds for arm in ARMS]
    last = {arm: statistics.fmean(r["cut_off_last"] for r in runs if r["truncation"] == arm) for arm in ARMS}
    first, ratio = min(r["cut_off"][0] for r in runs), last["end"] / max(last["bootstrap"], 1e-9)
    figures = f"cut off in the last steps: {last['end']:.1%} with end, {last['bootstrap']:.1%} with bootstrap"
    thresholds = {
        "cut off at the end, end / bootstrap": f"≤ {SHARE_OF_BOOTSTRAP}",
        "cut off in the first step, every run": f"> {CUT_AT_FIRST:.0%}",
    }
    result = {"runs": runs, "thresholds": thresholds, "table": table(runs)}
    report("truncation", ratio <= SHARE_OF_BOOTSTRAP and first > CUT_AT_FIRST, figures, result, options)


def run(arm: str, seed: int) -> dict[str, Any]:
    """One arm and seed: fraction of completions cut off, and mean reward, of every step and over the last steps."""
    job = LaggedRun(adder(), Hyperparameters.model_validate(SETTINGS | {"truncation": arm, "seed": seed}))
    cut_off, rewards = list[float](), list[float]()
    for _ in range(STEPS):
        completions = [c for group in job.step()[0] for c in group.completions]
        cut_off.append(statistics.fmean(c.finish_reason == "length" for c in completions))
        rewards.append(statistics.fmean(c.reward or 0.0 for c in completions))
    print(f"  {arm}, seed {seed}: {cut_off[0]:.1%} → {cut_off[-1]:.1%} cut off", flush=True)
    return {
        "truncation": arm,
        "seed": seed,
        "cut_off": cut_off,
        "rewards": rewards,
        "cut_off_last": statistics.fmean(cut_off[-WINDOW:]),
        "reward_last": statistics.fmean(rewards[-WINDOW:]),
    }


def table(runs: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of seeds, columns of arms."""
    heading = [
        "seed",
        *(f"{what}, {arm}" for arm in ARMS for what in ("cut off at first", "at last", "reward at last")),
    ]
    rows = []
    for seed in sorted({r["seed"] for r in runs}):
        arms = [next(r for r in runs if (r["seed"], r["truncation"]) == (seed, arm)) for arm in ARMS]
        rows.append(
            [
                str(seed),
                *(
                    x
                    for r in arms
                    for x in (f"{r['cut_off'][0]:.1%}", f"{r['cut_off_last']:.1%}", f"{r['reward_last']:.2f}")
                ),
            ]
        )
    return [heading, *rows]


if __name__ == "__main__":
    main()
