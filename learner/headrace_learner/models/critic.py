"""The critic: a second model of the policy's shape, with one number for a head: the return expected from a token on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from headrace_core.config.hyperparameters import Hyperparameters

from ..algorithms.batch import MicroBatch
from ..device import compute_dtype, training_device
from ..distributed.process_group import ProcessGroup, one_process
from .policy import chosen_hidden
from .pretrained import build, read_weights


class ValueNet(nn.Module):
    """The base model's layers and a linear head, zero at first: no value is better than a random one."""

    def __init__(self, base: Any, device: torch.device) -> None:
        super().__init__()
        self.base = base
        self.head = nn.Linear(base.config.get_text_config().hidden_size, 1, device=device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: MicroBatch) -> Tensor:
        """[N] values before each contributing token, float32: summed and never rounded as such."""
        hidden_ND = chosen_hidden(self.base, batch).float()
        found = F.linear(hidden_ND, self.head.weight.float(), self.head.bias.float())[:, 0]
        return found.clone()  # not a view: FSDP2 hooks itself to what its root returns


class Critic:
    """Starts from the policy's own weights."""

    def __init__(
        self, folder: Path, settings: Hyperparameters | None = None, ranks: ProcessGroup | None = None
    ) -> None:
        """As `Policy`."""
        device, compute = training_device(), compute_dtype(settings)
        base = build(AutoModel, folder, settings is not None and settings.gradient_checkpointing)
        self.net = ValueNet(base, device)
        (ranks or one_process(compute)).shard(self.net, compute)
        read_weights(base, folder, device)

    def values(self, batch: MicroBatch) -> Tensor:
        """[N] expected returns from before each contributing token on, in units of the reward."""
        found: Tensor = self.net(batch)
        return found
