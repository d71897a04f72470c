"""How the learner's processes (ranks) share the work of a step, and combine their results.

Every rank builds the same batch from the same groups. Of each minibatch, rank r computes every size-th micro-batch;
each row of the step's columns is filled by one rank, and the columns are summed over ranks. All ranks must make the
same number of forward passes, because all gather the sharded weights together: a rank without a micro-batch left
computes an idle one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..algorithms.batch import MicroBatch


class ProcessGroup(Protocol):
    """The learner's ranks, as one of them sees them."""

    @property
    def index(self) -> int:
        """This rank's number; 0 talks to the ledger."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def sum(self, column: Tensor) -> Tensor:
        """Sum over all ranks, in place. All ranks call it, in the same order."""
        ...

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        ...

    def exchange(self, sent: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """All-to-all: send `sent[r]` (uint8) to rank r; returns what each rank sent to this one, of `sizes[r]` bytes.

        All ranks call it in the same order, from a thread of its own, concurrently with other collectives.
        """
        ...

    def together(self) -> AbstractContextManager[None]:
        """Context of a joint operation: raises `RanksLost` if a rank was lost during it."""
        ...

    def close(self) -> None:
        """Leave the group, whatever the other ranks are doing. Idempotent."""
        ...

    def shard(self, net: nn.Module, compute: torch.dtype) -> None:
        """Shard a model's parameters over the ranks, in place; call it before anything else refers to them.

        Parameters keep their precision, which gradients and the optimizer share; passes compute in `compute`.
        """
        ...


class SingleProcess:
    """The group of a learner with one process, without torch.distributed."""

    index, size = 0, 1

    def sum(self, column: Tensor) -> Tensor:
        return column

    def barrier(self) -> None:
        """There is no other rank to wait for."""

    def exchange(self, sent: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        return list(sent)

    @contextmanager
    def together(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        """There is no group to leave."""

    def shard(self, net: nn.Module, compute: torch.dtype) -> None:
        """The model stays unsharded. Raises `ValueError` for a precision other than its own: see `one_process`."""
        if any(parameter.dtype != compute for parameter in net.parameters()):
            raise ValueError(f"without FSDP a model computes in its own precision, not in {compute}")


def one_process(compute: torch.dtype) -> ProcessGroup:
    """The group of a learner with one process: FSDP over one rank where passes compute in another precision than
    float32, that of parameters."""
    if compute == torch.float32:
        return SingleProcess()
    from . import fsdp

    return fsdp.one_rank()


def share(micro_batches: Sequence[MicroBatch], ranks: ProcessGroup) -> list[MicroBatch]:
    """This rank's micro-batches; the same number on every rank."""
    passes = -(-len(micro_batches) // ranks.size)
    own = list(micro_batches[ranks.index :: ranks.size])
    return own + [_idle() for _ in range(passes - len(own))]


def _idle() -> MicroBatch:
    """One input token, no target: a forward and backward pass that contributes no gradient."""
    none = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(torch.zeros(1, 1, dtype=torch.int64), none, none, none, none)
