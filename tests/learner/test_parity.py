"""Of N ranks' contents, any one follows from the others' and the parities, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from headrace_learner.checkpoints import xor_parity
from headrace_learner.distributed.process_group import SingleProcess


class InThreads(SingleProcess):
    """One of several ranks that are threads of this process and exchange bytes through a table."""

    def __init__(self, index: int, size: int, table: dict[tuple[int, int], Tensor], meeting: threading.Barrier) -> None:
        self.index, self.size = index, size
        self._table, self._meeting = table, meeting

    def exchange(self, sent: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        for other, part in enumerate(sent):
            self._table[self.index, other] = part.clone()
        self._meeting.wait(20)
        received = [self._table[other, self.index] for other in range(self.size)]
        assert [len(part) for part in received] == list(sizes)
        self._meeting.wait(20)
        return received


def contents(size: int, block: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size)
    return [torch.randint(0, 256, (block * (size - 1),), dtype=torch.uint8, generator=generator) for _ in range(size)]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_rank_is_rebuilt(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xor_parity, "_CHUNK", 4096)  # several chunks a block
    block = xor_parity.block_size((size - 1) * 9000, size)
    assert block == 12288
    table: dict[tuple[int, int], Tensor] = {}
    meeting = threading.Barrier(size)
    ranks = [InThreads(index, size, table, meeting) for index in range(size)]
    whole = contents(size, block)
    parities = [torch.zeros(block, dtype=torch.uint8) for _ in ranks]
    with ThreadPoolExecutor(size) as threads:
        list(threads.map(xor_parity.fill, parities, whole, ranks))
        for lost in range(size):
            left = [content.clone() if r != lost else torch.zeros_like(content) for r, content in enumerate(whole)]
            kept = [p if r != lost else torch.zeros_like(p) for r, p in enumerate(parities)]
            list(threads.map(xor_parity.rebuild, [lost] * size, left, kept, ranks))
            assert all(torch.equal(found, expected) for found, expected in zip(left, whole, strict=True))


def test_a_parity_is_what_the_picture_says() -> None:
    size = 3
    table: dict[tuple[int, int], Tensor] = {}
    meeting = threading.Barrier(size)
    ranks = [InThreads(index, size, table, meeting) for index in range(size)]
    whole = contents(size, 4096)
    found = [torch.zeros(4096, dtype=torch.uint8) for _ in ranks]
    with ThreadPoolExecutor(size) as threads:
        list(threads.map(xor_parity.fill, found, whole, ranks))
    blocks = [content.view(2, -1) for content in whole]
    assert torch.equal(found[0], blocks[1][1] ^ blocks[2][0])
    assert torch.equal(found[1], blocks[0][0] ^ blocks[2][1])
    assert torch.equal(found[2], blocks[0][1] ^ blocks[1][0])


@pytest.mark.parametrize(
    ("largest", "ranks", "block"), [(1, 2, 4096), (4096, 2, 4096), (4097, 2, 8192), (8193, 3, 8192)]
)
def test_blocks_hold_the_largest_state_in_whole_pages(largest: int, ranks: int, block: int) -> None:
    assert xor_parity.block_size(largest, ranks) == block
