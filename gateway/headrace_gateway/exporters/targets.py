"""What measurements can be exported to: for the service, and for commands that begin without loading it."""

from typing import Literal

Target = Literal["jsonl", "tensorboard", "wandb"]
