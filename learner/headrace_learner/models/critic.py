"""The critic: a second model of the policy's shape, with one number for a head: the return expected from a token on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel

from ..algorithms.batch import MicroBatch
from ..device import precision, training_device
from .policy import chosen_hidden, load_model


class ValueNet(nn.Module):
    """The base model's layers and a linear head, zero at first: no value is better than a random one."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.head = nn.Linear(base.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: MicroBatch) -> Tensor:
        """[N] values before each contributing token, float32."""
        found: Tensor = self.head(chosen_hidden(self.base, batch))[:, 0].float()
        return found.clone()  # not a view: FSDP2 hooks itself to what its root returns


class Critic:
    """Starts from the policy's own weights."""

    def __init__(self, folder: Path, gradient_checkpointing: bool = False) -> None:
        self.device = training_device()
        self.net = ValueNet(load_model(AutoModel, folder, gradient_checkpointing)).to(self.device)

    def values(self, batch: MicroBatch) -> Tensor:
        """[N] expected returns from before each contributing token on, in units of the reward."""
        with precision(self.device):
            found: Tensor = self.net(batch)
            return found
