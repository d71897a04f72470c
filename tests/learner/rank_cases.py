"""What ranks of a learner do in processes of their own; and the same alone."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from headrace_core.protocols.worker import WorkerConfig
from headrace_core.types.trajectory import Group
from headrace_learner.algorithms.presets import algorithm
from headrace_learner.checkpoints import checkpoint
from headrace_learner.checkpoints.memory_snapshot import Restored, Snapshots
from headrace_learner.distributed.fsdp import FsdpGroup, connect_store, host_store, join_group
from headrace_learner.distributed.process_group import ProcessGroup
from headrace_learner.models.policy import Policy
from headrace_learner.rank_worker import RankWorker
from headrace_learner.training.trainer import StepResult, Trainer

from .cases import answered, hyperparameters, random_group

STEPS = 10
_SMALL = {"learning_rate": 1e-3, "token_budget": 64, "minibatches": 2}
CASES: dict[str, dict[str, object]] = {
    "ppo": {"algorithm": "ppo", "critic_warmup_steps": 1, "kl_coefficient": 0.1, "gae_lambda": 0.9, "minibatches": 3},
    "gspo": {"algorithm": "gspo", "kl_coefficient": 0.1, "kl_in": "loss", "kl_estimator": "k3"},
    "m2po": {"algorithm": "m2po", "gradient_checkpointing": True},
    "lora": {"lora_rank": 4, "kl_coefficient": 0.1, "learning_rate": 8e-3},
}
"""Settings by name. The budget makes micro-batches of odd number: ranks idle now and then."""


def make(model: Path, name: str, ranks: ProcessGroup | None = None) -> Trainer:
    """A fresh trainer of a case."""
    torch.manual_seed(0)
    settings = hyperparameters(**(_SMALL | CASES[name]))
    return Trainer(Policy(model, settings, ranks), algorithm(settings.algorithm), settings)


def train(trainer: Trainer) -> list[StepResult]:
    """Ten steps; some completions have a reference answer after them."""

    def groups(version: int) -> list[Group]:
        drawn = [random_group(4 * version + i, (version,), greedy=0.5) for i in range(4)]
        return [answered(group, (version,)) if i % 2 else group for i, group in enumerate(drawn)]

    return [trainer.step(groups(version), version) for version in range(STEPS)]


def figures(results: list[StepResult]) -> list[dict[str, object]]:
    """What steps measured, as JSON holds it."""
    return [
        msgspec.to_builtins(r.measured, str_keys=True) | {"mean_loss": r.loss, "grad_norm": r.grad_norm}
        for r in results
    ]


def held(trainer: Trainer) -> tuple[int, int]:
    """How many numbers of the policy, and of its optimizer's moments, are in this process."""
    model_optimizer = trainer.optimizers["policy"]
    moments = [t for state in model_optimizer.optimizer.state.values() for t in state.values() if t.ndim]
    parameters = list(model_optimizer.model.parameters())
    return local(parameters), local(moments)


def local(tensors: Sequence[Tensor]) -> int:
    return sum(t.to_local().numel() if isinstance(t, DTensor) else t.numel() for t in tensors)


def in_ranks(size: int, target: Callable[..., None], *given: object) -> None:
    """`target(index, size, address, *given)` in processes of their own, which must end well."""
    store = host_store("127.0.0.1", size, 60)
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=target, args=(i, size, (store.host, store.port), *given)) for i in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(240)
        if rank.is_alive():
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0] * size


@contextmanager
def joined(index: int, size: int, address: tuple[str, int]) -> Iterator[FsdpGroup]:
    """In the process of a rank: one thread, warnings are errors, and the group is left at the end."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    ranks = join_group(connect_store(*address, size, 60), "127.0.0.1", index, size, 60, 60)
    try:
        yield ranks
    finally:
        ranks.close()


def be_rank(index: int, size: int, address: tuple[str, int], model: Path, folder: Path) -> None:
    """Train every case, leaving figures, weights and checkpoints in `folder`/<case>; see `test_sharding`."""
    with joined(index, size, address) as ranks:
        for name in CASES:
            own, first = folder / name, index == 0
            trainer = make(model, name, ranks)
            results = train(trainer)
            (own / "published").mkdir(parents=True, exist_ok=True)
            trainer.policy.write_weights(own / "published" if first else None)
            (own / f"held-{index}.json").write_text(json.dumps(held(trainer)))
            if first:
                (own / "figures.json").write_text(json.dumps(figures(results)))
            checkpoint.save(trainer, own, STEPS)
            take_snapshot(trainer, own / "memory")
            checkpoint.load(trainer, folder / "alone" / name / "checkpoints" / f"step-{STEPS:08d}")
            checkpoint.save(trainer, own / "again", STEPS)
            lose_a_rank_and_restore(trainer, own / "memory")
            checkpoint.save(trainer, own / "rebuilt", STEPS)
        listening = [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"]
        (folder / f"listens-{index}.json").write_text(json.dumps(listening))


def take_snapshot(trainer: Trainer, memory: Path) -> None:
    snapshots = Snapshots(trainer, memory)
    assert snapshots.begin(STEPS) is None
    snapshots.close()


def lose_a_rank_and_restore(trainer: Trainer, memory: Path) -> None:
    """Rank 1's own, as where its node went; rank 0's bytes and parity are left."""
    if trainer.ranks.index == 1:
        for file in memory.glob("rank-1-*"):
            file.unlink()
    snapshots = Snapshots(trainer, memory)
    assert snapshots.restore(0, STEPS) == Restored(STEPS, ())
    snapshots.close()


def be_follower(config: bytes) -> None:
    """Rank 1 of a learner, for its whole life; `config` is a `WorkerConfig` in msgpack."""

    async def live() -> None:
        worker = RankWorker.from_config(msgspec.msgpack.decode(config, type=WorkerConfig))
        await worker.start()
        assert await worker.run() == "finished"
        await worker.stop()

    warnings.simplefilter("error")
    asyncio.run(live())
