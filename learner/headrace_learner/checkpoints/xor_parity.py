"""XOR parity over the ranks' snapshots: of N ranks, any one's bytes follow from the bytes and the parities of the rest.

Three ranks; rank r's bytes are cut into N − 1 blocks, of which no two are in one stripe. A stripe's parity is kept by
the one rank that has no block in it, so that each rank keeps 1/(N − 1) of its own size more (RAID 5 across ranks):

               rank 0    rank 1    rank 2
    stripe 0   parity    block 1   block 0        parity 0 = block 1 of rank 1 ⊕ block 0 of rank 2
    stripe 1   block 0   parity    block 1
    stripe 2   block 1   block 0   parity

All ranks call these functions together, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..distributed.process_group import ProcessGroup

_CHUNK = 16 << 20
"""Bytes of a block that are under way at a time; bounds what the exchange needs beside the blocks."""
_ALIGNED = 4096


def block_size(largest: int, ranks: int) -> int:
    """Bytes of a block where the largest rank's state has `largest`; all ranks' are as long, filled up with zeros."""
    return -(-largest // ((ranks - 1) * _ALIGNED)) * _ALIGNED


def fill(parity: Tensor, content: Tensor, ranks: ProcessGroup) -> None:
    """uint8 [block size]: the parity of this rank's stripe, from the content, uint8 [(N − 1) × block size], of all."""
    own, size = ranks.index, ranks.size
    for start, end in _chunks(len(parity)):
        sent = [_block(content, own, p, size)[start:end] if p != own else content[:0] for p in range(size)]
        received = ranks.exchange(sent, [end - start if r != own else 0 for r in range(size)])
        _xor([part for r, part in enumerate(received) if r != own], parity[start:end])


def rebuild(lost: int, content: Tensor, parity: Tensor, ranks: ProcessGroup) -> None:
    """Write rank `lost`'s content there, from the content and the parities of the others."""
    own, size = ranks.index, ranks.size
    for stripe in (p for p in range(size) if p != lost):
        given = parity if stripe == own else _block(content, own, stripe, size)
        for start, end in _chunks(len(parity)):
            sent = [given[start:end] if own != lost and r == lost else content[:0] for r in range(size)]
            sizes = [end - start if own == lost and r != lost else 0 for r in range(size)]
            received = ranks.exchange(sent, sizes)
            if own == lost:
                _xor([part for r, part in enumerate(received) if r != lost], given[start:end])


def _block(content: Tensor, rank: int, stripe: int, ranks: int) -> Tensor:
    """Of `rank`'s content, the block in `stripe`, which is not its own."""
    return content.view(ranks - 1, -1)[(stripe - rank - 1) % ranks]


def _chunks(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]


def _xor(parts: Sequence[Tensor], place: Tensor) -> None:
    """By numpy, on this thread alone: torch would share it among as many threads as training has."""
    first, *others = (part.numpy().view(np.uint64) for part in parts)
    found = place.numpy().view(np.uint64)
    np.copyto(found, first)
    for other in others:
        np.bitwise_xor(found, other, out=found)
