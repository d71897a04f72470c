"""Where the learner computes, and in which precision."""

from __future__ import annotations

import torch


def training_device() -> torch.device:
    """The first GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 for matrix products on a GPU, float32 elsewhere (a CPU has no hardware for it)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
