"""Passes in bfloat16 over weights in float32: on a CPU only where a job asks for it, with the same code as on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from headrace_learner.algorithms.presets import algorithm
from headrace_learner.checkpoints import checkpoint
from headrace_learner.checkpoints.memory_snapshot import Restored, Snapshots
from headrace_learner.device import compute_dtype
from headrace_learner.distributed import fsdp
from headrace_learner.distributed.fsdp import FsdpGroup
from headrace_learner.distributed.process_group import SingleProcess, one_process
from headrace_learner.models.critic import Critic
from headrace_learner.models.policy import Policy
from headrace_learner.training.trainer import Trainer

from .bench import STEPS, Bench, train_whole
from .cases import hyperparameters, random_group
from .sharded_load_cases import a_batch, state_of

Make = Callable[..., Trainer]


@pytest.fixture
def alone() -> Iterator[FsdpGroup]:
    ranks = fsdp.one_rank()
    yield ranks
    ranks.close()


@pytest.fixture
def make(model_folder: Path, alone: FsdpGroup) -> Make:
    """As `make_trainer`, in bfloat16."""

    def make(**given: object) -> Trainer:
        torch.manual_seed(0)
        settings = hyperparameters(learner_precision="bfloat16", **given)
        return Trainer(Policy(model_folder, settings, alone), algorithm(settings.algorithm), settings)

    return make


def train(trainer: Trainer, first: int = 0, steps: int = 2) -> None:
    for version in range(first, first + steps):
        trainer.step([random_group(4 * version + i, (version,)) for i in range(4)], version)


def numbers(trainer: Trainer) -> list[Tensor]:
    return [(t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for t in state_of(trainer)]


def test_a_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert compute_dtype(None) == compute_dtype(hyperparameters()) == torch.float32
    assert compute_dtype(hyperparameters(learner_precision="bfloat16")) == torch.bfloat16
    assert isinstance(one_process(torch.float32), SingleProcess)
    assert not dist.is_initialized()


def test_one_process_without_fsdp_does_not_compute_in_float32_unnoticed(model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"not in torch\.bfloat16"):
        Policy(model_folder, hyperparameters(learner_precision="bfloat16"), SingleProcess())


def test_log_probabilities_are_rounded_in_their_factors_alone(make: Make, make_trainer: Make) -> None:
    with torch.no_grad():
        exact, rounded = (each().policy.logprobs(a_batch(), 0.8) for each in (make_trainer, make))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05
    assert not torch.equal(rounded, rounded.bfloat16().float())


def test_steps_too_small_for_bfloat16_are_kept(make: Make) -> None:
    trainer = make(learning_rate=1e-6)
    before = [p.full_tensor().clone() for p in trainer.policy.model.parameters() if isinstance(p, DTensor)]
    train(trainer)
    after = [p.full_tensor() for p in trainer.policy.model.parameters() if isinstance(p, DTensor)]
    assert len(before) == len(after) > 0
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    same = [float((a.bfloat16() == b.bfloat16()).float().mean()) for a, b in zip(before, after, strict=True)]
    assert min(same) > 0.9


@pytest.mark.parametrize("settings", [{}, {"algorithm": "ppo"}, {"lora_rank": 4}])
def test_checkpoint_and_snapshot_hold_all_of_it(make: Make, tmp_path: Path, settings: dict[str, object]) -> None:
    trainer = make(**settings)
    train(trainer)
    path = checkpoint.save(trainer, tmp_path, 2)
    snapshots = Snapshots(trainer, tmp_path / "memory")
    assert snapshots.begin(2) is None
    snapshots.close()
    train(trainer, 2)
    expected = numbers(trainer)
    assert {t.dtype for t in expected} == {torch.float32}
    checkpoint.load(again := make(**settings), path)
    train(again, 2)
    restored = make(**settings)
    snapshots = Snapshots(restored, tmp_path / "memory")
    assert snapshots.restore(0, 2) == Restored(2, ())
    snapshots.close()
    train(restored, 2)
    for other in (again, restored):
        assert all(torch.equal(a, b) for a, b in zip(expected, numbers(other), strict=True))


@pytest.mark.parametrize("optimizer", ["galore", "fira", "dct_adamw"])
def test_low_rank_optimizers_have_whole_matrices_of_one_rank(
    make: Make, make_trainer: Make, tmp_path: Path, optimizer: str
) -> None:
    settings = {"optimizer": optimizer, "optimizer_rank": 4, "optimizer_interval": 2}
    trainer, exact = make(**settings), make_trainer(**settings)
    train(trainer)
    train(exact)
    near = [p.full_tensor() for p in trainer.policy.model.parameters() if isinstance(p, DTensor)]
    assert [a.shape for a in near] == [b.shape for b in exact.policy.model.parameters()]
    apart = [(a - b).detach().abs().max() for a, b in zip(near, exact.policy.model.parameters(), strict=True)]
    assert 0 < max(map(float, apart)) < 0.05
    path = checkpoint.save(trainer, tmp_path, 2)
    checkpoint.load(again := make(**settings), path)
    for each in (trainer, again):
        train(each, 2)
    assert all(torch.equal(a, b) for a, b in zip(numbers(trainer), numbers(again), strict=True))


def test_what_is_frozen_is_held_in_bfloat16(make: Make, model_folder: Path, alone: FsdpGroup) -> None:
    """Half the memory, and the same passes: they would be cast for each."""
    adapted = make(lora_rank=4).policy
    kinds = {p.requires_grad: p.dtype for p in adapted.model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    settings = hyperparameters(learner_precision="bfloat16")
    trained, frozen = Policy(model_folder, settings, alone), Policy(model_folder, settings, alone, trained=False)
    assert {p.dtype for p in frozen.model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        found = [p.logprobs(a_batch(), 0.8) for p in (trained, frozen, adapted)]
        found.append(adapted.reference()(a_batch(), 0.8))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_values_are_not_rounded_as_such(model_folder: Path, alone: FsdpGroup) -> None:
    critic = Critic(model_folder, hyperparameters(learner_precision="bfloat16"), alone)
    with torch.no_grad():
        for p in critic.net.head.parameters():
            p.add_(1.0)
        values = critic.values(a_batch())
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


@pytest.mark.timeout(120)
async def test_a_job_trains_in_bfloat16_in_one_process(bench: Callable[..., Bench]) -> None:
    job = bench("rounded", learner_precision="bfloat16")
    await train_whole(job)
    assert (await job.ledger.newest())[0] == STEPS
    assert {t.dtype for t in job.model().values()} == {torch.float32}
    assert not dist.is_initialized(), "the learner left its group"
