"""The trainer's state as one sequence of bytes: random state, parameters and optimizer state, in a fixed order.

Each tensor begins at a multiple of `WORD` bytes.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..training.trainer import Trainer
from .device_copy import copy_out
from .shm_segment import WORD


def state_tensors(trainer: Trainer) -> list[Tensor]:
    """The random state, then this rank's trained parameters and optimizer state (not copies), always in the same
    order."""
    tensors: list[Tensor] = []
    for _, model_optimizer in sorted(trainer.optimizers.items()):
        for group in model_optimizer.optimizer.param_groups:
            for parameter in group["params"]:
                state = model_optimizer.optimizer.state[parameter]
                tensors += [parameter, *(state[name] for name in sorted(state))]
    with torch.no_grad():
        return [torch.get_rng_state(), *(t.to_local() if isinstance(t, DTensor) else t.detach() for t in tensors)]


def layout(trainer: Trainer) -> tuple[int, int]:
    """(CRC-32 of shapes and dtypes, bytes of the state with each tensor aligned to `WORD` bytes)."""
    tensors = state_tensors(trainer)
    described = [f"{tuple(t.shape)} {t.dtype}" for t in tensors]
    return zlib.crc32("; ".join(described).encode()), sum(_padded_bytes(t) for t in tensors)


def copy_to(content: Tensor, tensors: list[Tensor], ready: torch.cuda.Event | None) -> None:
    """Copy the tensors' bytes into `content` [bytes], after `ready`."""
    places, at = [], 0
    for tensor in tensors:
        places.append(content[at : at + tensor.nbytes])
        at += _padded_bytes(tensor)
    copy_out(tensors, places, ready)


@torch.no_grad()
def write_back(content: Tensor, trainer: Trainer) -> None:
    """Set the trainer's state from `content` [bytes], which `copy_to` filled: bit for bit."""
    tensors, at = state_tensors(trainer), 0
    for tensor in tensors:
        tensor.copy_(content[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        at += _padded_bytes(tensor)
    torch.set_rng_state(tensors[0])


def _padded_bytes(tensor: Tensor) -> int:
    return -(-tensor.nbytes // WORD) * WORD
