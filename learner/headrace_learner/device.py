"""The device and the precision of the learner's computations."""

from __future__ import annotations

import torch


def training_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 for matrix products on a GPU, float32 elsewhere (a CPU has no hardware for it)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
