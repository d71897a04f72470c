"""A learner of several processes: one policy in shards, over torch.distributed.

    rank 0    hold ── TCPStore on an address of its own ──┐
    rank r    meet ── host and port, told by rank 0 ──────┼─► join ─► Sharded: shard models, sum columns, close
                                                          ┘

Parameters, gradients and optimizer state are cut along their first dimension, one shard a rank (FSDP2: each transformer
layer is gathered when its forward or backward pass needs it, and let go afterwards). Gradients are summed over ranks,
not averaged: each token's part of the loss is scaled by facts of the whole minibatch already.

Invariants: the same step gives every rank the same clipped norm and the same columns; no collective waits longer than
the limit that the ranks joined with; a rank that ends closes its connections, which ends the waits of its peers.

Trust: torch.distributed.checkpoint exchanges its plans between ranks as pickles. The ranks' network must be one that
only they can reach, as Ray's must; on one machine, store and collectives listen on loopback alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import urlsplit

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore, Store, TCPStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from headrace_core.errors import TimedOut, Unavailable

from ..device import training_device

_LOOPBACK = "127.0.0.1"
_ALONE_TIMEOUT = 60.0
"""Seconds; of a group of one, nothing takes long."""


class RanksLost(Unavailable):
    """Another rank died, or did not take part in time; the ranks that are left cannot go on without it."""

    code = "ranks_lost"


def own_address(url: str) -> str:
    """The address from which this machine reaches `url`, Redis's: the ranks share that network.

    Where Redis is reached by a unix socket or loopback, all ranks are on this machine: loopback.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix" or not parts.hostname:
        return _LOOPBACK
    family, _, _, _, target = socket.getaddrinfo(parts.hostname, parts.port or 6379, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # of a datagram socket: chooses a route, sends nothing
        return str(probe.getsockname()[0])


def host_store(address: str, size: int, timeout: float) -> TCPStore:
    """Rank 0's: a store at a free port of `address`, and of no other, where `size` ranks find each other."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listening:
        port = listening.getsockname()[1]
        return TCPStore(
            address,
            port,
            size,
            is_master=True,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )


def connect_store(host: str, port: int, size: int, timeout: float) -> TCPStore:
    """Another rank's way to the store that rank 0 holds. Raises `TimedOut`."""
    limit = timedelta(seconds=timeout)
    try:
        return TCPStore(host, port, size, is_master=False, timeout=limit, wait_for_workers=False)
    except dist.DistError as error:
        raise TimedOut(f"rank 0 of the learner did not answer at {host}:{port} within {timeout:.0f} s") from error


def join_group(
    store: TCPStore, address: str, index: int, size: int, timeout: float, collective_timeout: float
) -> FsdpGroup:
    """Returns when all `size` ranks are there. Limits in seconds: of that, and of each collective afterwards.

    Collectives listen at `address`, this rank's own, unless the environment says otherwise. Raises `TimedOut`, which
    names the ranks that did not come.
    """
    places = [f"rank {i}" for i in range(size)]
    store.set(places[index], "here")
    try:
        store.wait(places, timedelta(seconds=timeout))
    except dist.DistError as error:
        lacking = ", ".join(place for place in places if not store.check([place]))
        raise TimedOut(f"{lacking} of the learner's {size} ranks did not connect within {timeout:.0f} s") from error
    return _start(store, address, index, size, collective_timeout)


def one_rank() -> FsdpGroup:
    """This process alone, which nobody can join: what listens does so on loopback, and collectives are copies."""
    return _start(HashStore(), _LOOPBACK, 0, 1, _ALONE_TIMEOUT)


def _start(store: Store, address: str, index: int, size: int, timeout: float) -> FsdpGroup:
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, _interface(address))
    device = training_device()
    if device.type == "cuda":
        torch.cuda.set_device(0)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():  # one a process
        dist.init_process_group(backend, store=store, rank=index, world_size=size, timeout=timedelta(seconds=timeout))
    return FsdpGroup(index, size, device)


def _interface(address: str) -> str:
    """Left to itself, gloo takes the one that the machine's name stands for: on many a machine 127.0.1.1."""
    return next(name for name, own in psutil.net_if_addrs().items() if address in (a.address for a in own))


class FsdpGroup:
    """See `ProcessGroup`. One a process: torch's default process group is the process's."""

    def __init__(self, index: int, size: int, device: torch.device) -> None:
        self.index, self.size = index, size
        self._mesh = init_device_mesh(device.type, (size,))
        self._beside = dist.new_group(backend="gloo")
        """For what runs beside training: collectives of one group must not cross."""

    def sum(self, column: Tensor) -> Tensor:
        """Over all ranks, in place."""
        dist.all_reduce(column)
        return column

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        dist.barrier()

    def exchange(self, sent: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        given = torch.cat(list(sent))
        received = torch.empty(sum(sizes), dtype=torch.uint8)
        dist.all_to_all_single(received, given, list(sizes), [len(part) for part in sent], group=self._beside)
        return list(received.split(list(sizes)))

    def shard(self, net: nn.Module, compute: torch.dtype) -> None:
        """Keep one shard of `net`'s parameters here: each transformer layer's, and the rest's together.

        Only a call of `net` itself gathers the rest. A frozen net lets it go after each forward pass; one that is
        trained keeps it for the backward pass, which needs it first of all. What is gathered has the precision
        `compute`; gradients are summed in float32. Parameters on the meta device are sharded there.
        """
        precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
        trained = any(parameter.requires_grad for parameter in net.parameters())
        for module in [m for m in net.modules() if isinstance(m, GradientCheckpointingLayer)]:
            fully_shard(module, mesh=self._mesh, mp_policy=precision)
        kept = None if trained else True
        fully_shard(net, mesh=self._mesh, reshard_after_forward=kept, mp_policy=precision)
        for module in net.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                # As a plain sum: gloo has no sum that scales.
                module.set_force_sum_reduction_for_comms(True)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around what all ranks do: the failure of a collective becomes `RanksLost`."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                text = " ".join(str(error).split())[:300]
                raise RanksLost(f"rank {self.index} of the learner lost another rank: {text}") from error
            raise

    def close(self) -> None:
        """Leave. Idempotent; peers that wait for this rank fail at once."""
        if dist.is_initialized():
            dist.destroy_process_group()
