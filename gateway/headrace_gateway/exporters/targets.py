"""The export targets. A module of its own, so that commands can use it without importing the gateway."""

from typing import Literal

Target = Literal["jsonl", "tensorboard", "wandb"]
