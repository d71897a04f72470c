"""A reward for phrases of reasoning alone, and a reward model corrected by it (arXiv 2505.22653).

After "The Climb Carves Wisdom Deeper Than the Summit": 40 phrases such as "we need to", each counted once, right
answer or wrong. There, a 7B model comes to 70.2 on MATH-500 by it (75.9 by right answers), then falls. Here on the
adder, whose two phrases of the 40, "first, " and "we need to", go with the working that is mostly right, by GRPO and
the service's own graders:

    phrases       `reasoning_pattern` in both published scalings; nothing says whether an answer is right
    right         `string_check` of the answer, what the phrases are compared with
    reward model  `string_check` with 35 % of its verdicts wrong, each completion's for itself: right in 65 %
    calibrated    the same in `calibrated`, with the published τ = 0.5, α = 0.1, list and scaling

Accuracy is that of greedy completions of held-out rows, which no phrase and no noise touches. It starts at 0.55 in
every run. All runs of one comparison are equally long: 32 steps by phrases and by right answers, 16 by the two reward
models. Two seeds of the first, three of the second. Rewarded for phrases, the model learns to reason in the better
way, then goes on being rewarded whatever it computes; the runs go on past the peak.

What the settings were chosen from, seed 0, before the thresholds were written: a job of 40 steps with the demo's
settings, rewarded for "we need to" alone, evaluated every 10 steps, came to 0.55, 0.90, 0.97, 0.95, 0.76; the reward
model with four completions a prompt to 0.55, 0.57 and 0.64 after 4, 8 and 12 steps. `calibrated` was not tried. Seed 0
is not counted: the counted seeds begin with 1. A first counted run had seed 0 among its seeds, and its runs by right
answers ended after 16 steps, still rising: its ratios, 1.019, were against an unfinished comparator.

How far it reaches. That the two phrases go with the working that is mostly right is how the small model was made: an
input, not a finding. What is found is that GRPO takes this way up without being told what is right, and that it does
not last. A peak is the highest of eight evaluations of 256 rows, chosen after the fact. The model has two of the 40
phrases to find, so both scalings order completions alike, and GRPO divides their factor of two out again. A calibration
of α · 2/40 = 0.005 is next to nothing beside rewards of 0 and 1: what it moves is groups whose rewards are all 0, which
GRPO's deviation blows up to full size.

    python -m evidence.reasoning_pattern.run [--seed N] [--out FILE] [--image FILE]
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

# Before torch is imported, here and in the workers: two processes with two threads each would spin on each other.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from evidence.reasoning_pattern.plot import draw
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_lab.paths import ROOT
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.training.graded_training import RIGHT, GradedRun

# Written before the first counted run.
PEAK_OF_CLEAN = 0.90
"""PASS: peak accuracy with the phrase reward is at least this fraction of the final accuracy with the reward for right
answers, both as means over seeds, for each scaling."""
CALIBRATED_AHEAD = 0.0
"""PASS: the calibrated reward model's accuracy exceeds the plain one's by more than this, as a mean over evaluations
and seeds."""

WRONG_VERDICTS = 0.35
EVALUATE_EVERY = 4
FIRST_COUNTED = 1
"""First counted seed, added to `--seed`: the settings were chosen with seed 0."""
COMMON: dict[str, Any] = {
    **{"algorithm": "grpo", "learning_rate": 1.5e-4, "max_tokens": 64, "max_context": 80},
    **{"proximal": "behaviour"},
}
"""Data are on-policy and a step is one update, so the behaviour policy equals the proximal policy, whose
log-probabilities need not be recomputed."""
MANY, FEW = {"batch_size": 32, "group_size": 8}, {"batch_size": 64, "group_size": 4}
LIMIT_SECONDS = 7200.0
"""Time limit of all runs together."""


def reward_model(seed: int) -> dict[str, Any]:
    """A grader that is right in 65 % of its verdicts."""
    return {
        "type": "noisy",
        "name": "reward-model",
        "grader": RIGHT,
        "flip": WRONG_VERDICTS,
        "per": "completion",
        "seed": seed,
    }


def pattern(scaling: str) -> Callable[[int], dict[str, Any]]:
    """Graders, by seed, with the published list of phrases in one of the published scalings."""
    return lambda seed: {"type": "reasoning_pattern", "name": "pattern", "scaling": scaling}


ARMS: dict[str, tuple[Callable[[int], dict[str, Any]], dict[str, Any], int]] = {
    "right": (lambda seed: RIGHT, MANY | {"n_steps": 32}, 2),
    "paper": (pattern("paper"), MANY | {"n_steps": 32}, 2),
    "code": (pattern("code"), MANY | {"n_steps": 32}, 2),
    "model": (reward_model, FEW | {"n_steps": 16}, 3),
    "calibrated": (
        lambda seed: {"type": "calibrated", "name": "calibrated", "grader": reward_model(seed)},
        FEW | {"n_steps": 16},
        3,
    ),
}
"""By arm: the grader of a seed, the settings, the number of seeds."""


def main() -> None:
    parser = arguments("reasoning_pattern", __doc__)
    parser.add_argument("--image", type=Path, default=ROOT / "docs" / "images" / "reasoning_pattern.png")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side")
    options = parser.parse_args()
    began = time.monotonic()
    runs = []
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as processes:
        cells = [(arm, options.seed + FIRST_COUNTED + i) for arm, (_, _, seeds) in ARMS.items() for i in range(seeds)]
        for done in as_completed([processes.submit(train, *cell) for cell in cells], timeout=LIMIT_SECONDS):
            runs.append(run := done.result())
            print(f"{len(runs)}/{len(cells)} {run['arm']}, seed {run['seed']}: {run['accuracies']}", flush=True)
    runs.sort(key=lambda run: (list(ARMS).index(run["arm"]), run["seed"]))
    result: dict[str, Any] = {
        "seeds": {arm: sorted(run["seed"] for run in runs if run["arm"] == arm) for arm in ARMS},
        "settings": {"common": COMMON, **{arm: settings for arm, (_, settings, _) in ARMS.items()}},
        "seconds": round(time.monotonic() - began),
        "runs": runs,
    }
    seen = figures(runs)
    result |= {"thresholds": {name: limit for name, limit, _, _ in seen}, "table": table(runs, seen)}
    draw(result, options.image)
    last = "; ".join(f"{name} {value}" for name, _, value, _ in seen)
    report("reasoning_pattern", all(met for *_, met in seen), last, result, options)


def train(arm: str, seed: int) -> dict[str, Any]:
    """One run, in this process: held-out accuracies, and the rewards in training."""
    began = time.monotonic()
    grader, changes, _ = ARMS[arm]
    settings = Hyperparameters.model_validate({**COMMON, **changes, "seed": seed})
    run = GradedRun(settings, grader(seed))
    accuracies, rewards, lengths = [run.accuracy()], [], []
    while run.version < changes["n_steps"]:
        completions = [c for g in run.step()[0] for c in g.completions]
        rewards.append(round(float(np.mean([c.reward for c in completions])), 5))
        lengths.append(round(float(np.mean([len(c.token_ids) for c in completions])), 2))
        if run.version % EVALUATE_EVERY == 0:
            accuracies.append(run.accuracy())
    return {
        **{"arm": arm, "seed": seed, "seconds": round(time.monotonic() - began, 1)},
        **{"steps": [*range(0, run.version + 1, EVALUATE_EVERY)], "accuracies": [round(a, 4) for a in accuracies]},
        **{"rewards": rewards, "completion_lengths": lengths},
    }


def accuracies(runs: list[dict[str, Any]], arm: str) -> list[list[float]]:
    """Accuracies of each seed of an arm, in the order of the evaluations."""
    return [run["accuracies"] for run in runs if run["arm"] == arm]


def figures(runs: list[dict[str, Any]]) -> list[tuple[str, str, str, bool]]:
    """(name, limit, measured value, whether it passes) of every threshold."""
    clean = float(np.mean([course[-1] for course in accuracies(runs, "right")]))
    found = []
    for scaling in ("paper", "code"):
        peak = float(np.mean([max(course) for course in accuracies(runs, scaling)])) / clean
        limit = f"≥ {PEAK_OF_CLEAN}"
        found.append(
            (f"peak by phrases / by right answers, scaling {scaling}", limit, f"{peak:.3f}", peak >= PEAK_OF_CLEAN)
        )
    calibrated, plain = (float(np.mean([c[1:] for c in accuracies(runs, a)])) for a in ("calibrated", "model"))
    ahead = calibrated - plain
    name = "calibrated reward model less the plain one, accuracy along the way"
    return [*found, (name, f"> {CALIBRATED_AHEAD:g}", f"{ahead:+.3f}", ahead > CALIBRATED_AHEAD)]


def table(runs: list[dict[str, Any]], seen: list[tuple[str, str, str, bool]]) -> list[list[str]]:
    """The table shown in the docs: the thresholds' figures, then each arm's accuracies over time."""
    rows = [[name, value, limit] for name, limit, value, _ in seen]
    for scaling in ("paper", "code"):
        fallen = [max(course) - course[-1] for course in accuracies(runs, scaling)]
        rows.append([f"decline from the peak to the end, scaling {scaling}", _each(fallen), "reported"])
        at_end = [course[-1] for course in accuracies(runs, scaling)]
        against = float(np.mean(at_end) / np.mean([course[-1] for course in accuracies(runs, "right")]))
        rows.append([f"at the end by phrases / by right answers, scaling {scaling}", f"{against:.3f}", "reported"])
    for arm in ARMS:
        rows.append([f"{arm}: highest accuracy of each seed", _each([max(c) for c in accuracies(runs, arm)]), ""])
        rows.append([f"{arm}: accuracy at the end", _each([c[-1] for c in accuracies(runs, arm)]), ""])
    return [["figure", "seen", "limit"], *rows]


def _each(shares: list[float]) -> str:
    return " · ".join(f"{share:.1%}" for share in shares)


if __name__ == "__main__":
    main()
