"""What a ReMax step costs beside a PPO step on as many completions: bytes that stay, seconds to train and to generate.

Both keep a reference model; PPO is measured with one optimizer update a step, as ReMax has, and with its preset's four.
Rounds alternate between the three, so that all meet the same machine. No weight moves (see `gradients`), so
that all write completions of the same lengths. Seconds are the processor's: one thread does all the work, so that on a
machine of one's own they are those of the clock, and on a shared one they do not count the neighbours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from evidence.remax.gradients import UNMOVED
from evidence.remax.training import COMMON
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_lab.training.lagged_training import LaggedRun, adder
from headrace_learner.training.trainer import Trainer

ROUNDS = 12
RUNS: dict[str, dict[str, Any]] = {
    "remax": {"algorithm": "remax"},
    "ppo": {"algorithm": "ppo", "minibatches": 1},
    "ppo_preset": {"algorithm": "ppo"},
}


def measure(seed: int) -> dict[str, Any]:
    """State in bytes and times in seconds: medians over `ROUNDS` rounds, after one warm-up round."""
    torch.set_num_threads(1)
    changes = {"learning_rate": UNMOVED, "seed": seed}
    runs = {
        name: LaggedRun(adder(), Hyperparameters.model_validate({**COMMON, **own, **changes}))
        for name, own in RUNS.items()
    }
    rounds = [{name: _timed(run) for name, run in runs.items()} for _ in range(ROUNDS + 1)][1:]
    state = {name: state_bytes(runs[name].trainer) for name in ("remax", "ppo")}
    held = {name: sum(n for of_model in models.values() for n in of_model.values()) for name, models in state.items()}
    reference = state["remax"]["policy"]["weights"]
    return {
        "state_bytes": state,
        "state_share": held["remax"] / held["ppo"],
        "state_share_with_reference": (held["remax"] + reference) / (held["ppo"] + reference),
        "seconds": {name: _medians([r[name] for r in rounds]) for name in runs},
        "shares": {name: _shares(rounds, name) for name in ("ppo", "ppo_preset")},
    }


def state_bytes(trainer: Trainer) -> dict[str, dict[str, int]]:
    """Bytes of each trained model: its weights (tied ones counted once) and the state of its optimizer."""
    return {
        name: {
            "weights": sum(p.nbytes for p in model_optimizer.model.parameters()),
            "optimizer": sum(t.nbytes for kept in model_optimizer.optimizer.state.values() for t in kept.values()),
        }
        for name, model_optimizer in trainer.optimizers.items()
    }


def _timed(run: LaggedRun) -> dict[str, float]:
    """Seconds of the parts of one iteration."""
    began = time.process_time()
    groups = run.groups()
    sampled = time.process_time()
    run.trainer.step(groups, run.version)
    trained = time.process_time()
    return {"generate": sampled - began, "train": trained - sampled, "iteration": trained - began}


def _medians(timed: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(t[part] for t in timed) for part in timed[0]}


def _shares(rounds: Sequence[dict[str, dict[str, float]]], of: str) -> dict[str, float]:
    """Medians over the rounds of ReMax's times divided by those of run `of` in the same round."""
    return _medians([{part: r["remax"][part] / r[of][part] for part in r[of]} for r in rounds])
