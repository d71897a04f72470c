"""The device and the precision of the learner's computations."""

from __future__ import annotations

import torch

from headrace_core.config.hyperparameters import Hyperparameters


def training_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(settings: Hyperparameters | None) -> torch.dtype:
    """Of the matrix products of a forward and a backward pass: `learner_precision`, by default bfloat16 on a GPU and
    float32 elsewhere (most CPUs have no hardware for bfloat16)."""
    default = "bfloat16" if training_device().type == "cuda" else "float32"
    chosen = (settings and settings.learner_precision) or default
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[chosen]
