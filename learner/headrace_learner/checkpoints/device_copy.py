"""Copies tensors from a training device into shared memory while the device computes.

CPU    tensor ──memcpy──► place
GPU    tensor ──side stream──► one of two pinned buffers ──memcpy──► place      the other buffer is filled meanwhile
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_BUFFER_BYTES = 32 << 20
"""Size of each of the two pinned buffers: large enough for the bus's full speed, small compared to any model."""


@torch.no_grad()
def copy_out(tensors: Sequence[Tensor], places: Sequence[Tensor], ready: torch.cuda.Event | None) -> None:
    """Copy each tensor's bytes to its place, a uint8 tensor of the same number of bytes; returns when all are copied.

    `ready`: the event on the GPU after which its tensors may be read; None if no tensor is on a GPU.
    """
    on_host = [(_bytes(t), place) for t, place in zip(tensors, places, strict=True) if not t.is_cuda]
    for content, place in on_host:
        _move(content, place)
    if ready is not None:
        _from_gpu([(_bytes(t), place) for t, place in zip(tensors, places, strict=True) if t.is_cuda], ready)


def _move(content: Tensor, place: Tensor) -> None:
    """Copy with numpy, in this thread alone: torch would use all of training's threads and slow training down."""
    np.copyto(place.numpy(), content.numpy())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _from_gpu(pairs: Sequence[tuple[Tensor, Tensor]], ready: torch.cuda.Event) -> None:
    buffers = [torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    arrived = [torch.cuda.Event() for _ in buffers]
    destinations: list[Tensor | None] = [None, None]
    """Where the content of each buffer goes; None: the buffer is empty."""

    def empty(number: int) -> None:
        if (place := destinations[number]) is not None:
            arrived[number].synchronize()
            _move(buffers[number][: len(place)], place)
            destinations[number] = None

    stream = torch.cuda.Stream()
    stream.wait_event(ready)
    pieces = [
        (content[i : i + _BUFFER_BYTES], place[i : i + _BUFFER_BYTES])
        for content, place in pairs
        for i in range(0, len(content), _BUFFER_BYTES)
    ]
    with torch.cuda.stream(stream):
        for turn, (content, place) in enumerate(pieces):
            number = turn % 2
            empty(number)
            buffers[number][: len(content)].copy_(content, non_blocking=True)
            arrived[number].record(stream)
            destinations[number] = place
    for number in range(2):
        empty(number)
