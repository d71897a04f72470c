"""The learner's processes among each other: who computes what, and how their figures come together.

Every rank lays out the same step from the same groups; of each minibatch, rank r computes every size-th micro-batch,
and columns of the step's table are summed over ranks, each row having been filled by one of them. All ranks make the
same number of forward passes, because sharded weights are gathered by all at once: where one has no micro-batch left,
it computes an idle one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..algorithms.batch import MicroBatch


class ProcessGroup(Protocol):
    """This process's place among the learner's processes."""

    @property
    def index(self) -> int:
        """0 is the one that talks to the ledger."""
        ...

    @property
    def size(self) -> int: ...

    def sum(self, column: Tensor) -> Tensor:
        """Over all ranks, in place; every rank calls it, in the same order."""
        ...

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        ...

    def exchange(self, sent: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Give `sent[r]`, uint8, to rank r; returns what each rank gave to this one, of `sizes` bytes.

        Every rank calls it, in the same order, and from one thread of its own: beside the other collectives.
        """
        ...

    def together(self) -> AbstractContextManager[None]:
        """Around what all ranks do: what it raises where one of them was lost names that."""
        ...

    def close(self) -> None:
        """Leave, whatever the others are doing. Idempotent."""
        ...

    def shard(self, net: nn.Module) -> None:
        """Spread a model's parameters over the ranks, in place; before anything else holds them."""
        ...


class SingleProcess:
    """The group of a learner that is one process: nobody to wait for or to exchange with."""

    index, size = 0, 1

    def sum(self, column: Tensor) -> Tensor:
        return column

    def barrier(self) -> None:
        """Nobody to wait for."""

    def exchange(self, sent: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        return list(sent)

    @contextmanager
    def together(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        """Nothing to leave."""

    def shard(self, net: nn.Module) -> None:
        """The model stays as it is."""


def share(micro_batches: Sequence[MicroBatch], ranks: ProcessGroup) -> list[MicroBatch]:
    """This rank's part; as many on every rank."""
    passes = -(-len(micro_batches) // ranks.size)
    own = list(micro_batches[ranks.index :: ranks.size])
    return own + [_idle() for _ in range(passes - len(own))]


def _idle() -> MicroBatch:
    """One token in, no target: a forward and backward pass of the model without a gradient."""
    none = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(torch.zeros(1, 1, dtype=torch.int64), none, none, none, none)
