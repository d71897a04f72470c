"""XOR parity over the ranks' snapshots: if one of N ranks loses its bytes, they are rebuilt from those of the others.

Each rank's bytes are cut into N − 1 blocks, each in a different stripe. The parity of a stripe is stored by the one
rank that has no block in it, so each rank stores 1/(N − 1) of its own size in addition (RAID 5 across ranks). With
three ranks:

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
"""Bytes of a block that are exchanged at a time; bounds the memory that the exchange needs beside the blocks."""
_ALIGNMENT = 4096


def block_size(max_bytes: int, ranks: int) -> int:
    """Bytes of a block if the largest state of a rank has `max_bytes`; smaller states are padded with zeros."""
    return -(-max_bytes // ((ranks - 1) * _ALIGNMENT)) * _ALIGNMENT


def fill(parity: Tensor, content: Tensor, ranks: ProcessGroup) -> None:
    """Compute the parity of this rank's stripe from the contents of all other ranks.

    `parity` uint8 [block size] is written; `content` uint8 [(N − 1) × block size] is this rank's.
    """
    own, size = ranks.index, ranks.size
    for start, end in _chunks(len(parity)):
        sent = [_block(content, own, p, size)[start:end] if p != own else content[:0] for p in range(size)]
        received = ranks.exchange(sent, [end - start if r != own else 0 for r in range(size)])
        _xor([part for r, part in enumerate(received) if r != own], parity[start:end])


def rebuild(lost: int, content: Tensor, parity: Tensor, ranks: ProcessGroup) -> None:
    """Rebuild rank `lost`'s content from the contents and parities of the others.

    On rank `lost`, `content` is written; the other ranks only send.
    """
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
    """The block of `rank`'s content that lies in `stripe`; `stripe` != `rank`, whose stripe holds parity only."""
    return content.view(ranks - 1, -1)[(stripe - rank - 1) % ranks]


def _chunks(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]


def _xor(parts: Sequence[Tensor], place: Tensor) -> None:
    """XOR of all parts, with numpy in this thread alone: torch would use all of training's threads."""
    first, *others = (part.numpy().view(np.uint64) for part in parts)
    result = place.numpy().view(np.uint64)
    np.copyto(result, first)
    for other in others:
        np.bitwise_xor(result, other, out=result)
