"""From a training device's memory into shared memory, beside what the device is computing.

CPU    tensor ──memcpy──► place
GPU    tensor ──side stream──► one of two pinned buffers ──memcpy──► place       the other is filled meanwhile
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_BUFFER = 32 << 20
"""Bytes of each pinned buffer: large enough for the bus's full speed, small beside any model."""


@torch.no_grad()
def copy_out(tensors: Sequence[Tensor], places: Sequence[Tensor], ready: torch.cuda.Event | None) -> None:
    """Copy each tensor's bytes to its place, uint8 of as many; returns when all are there.

    `ready`: of tensors on a GPU, what must have happened there before they may be read.
    """
    on_host = [(_bytes(t), place) for t, place in zip(tensors, places, strict=True) if not t.is_cuda]
    for content, place in on_host:
        _move(content, place)
    if ready is not None:
        _from_gpu([(_bytes(t), place) for t, place in zip(tensors, places, strict=True) if t.is_cuda], ready)


def _move(content: Tensor, place: Tensor) -> None:
    """By numpy, on this thread alone: torch would share it among as many threads as training has."""
    np.copyto(place.numpy(), content.numpy())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _from_gpu(pairs: Sequence[tuple[Tensor, Tensor]], ready: torch.cuda.Event) -> None:
    buffers = [torch.empty(_BUFFER, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    arrived = [torch.cuda.Event() for _ in buffers]
    under_way: list[Tensor | None] = [None, None]

    def empty(number: int) -> None:
        if (place := under_way[number]) is not None:
            arrived[number].synchronize()
            _move(buffers[number][: len(place)], place)
            under_way[number] = None

    stream = torch.cuda.Stream()
    stream.wait_event(ready)
    pieces = [(c[i : i + _BUFFER], p[i : i + _BUFFER]) for c, p in pairs for i in range(0, len(c), _BUFFER)]
    with torch.cuda.stream(stream):
        for turn, (content, place) in enumerate(pieces):
            number = turn % 2
            empty(number)
            buffers[number][: len(content)].copy_(content, non_blocking=True)
            arrived[number].record(stream)
            under_way[number] = place
    for number in range(2):
        empty(number)
