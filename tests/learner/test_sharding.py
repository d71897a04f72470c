"""Two ranks train as one does: the same weights, the same figures, and checkpoints that either reads.

One fixture runs all cases of `rank_cases` alone, then in two processes over gloo, which write

    <case>/checkpoints        what two ranks trained, saved by both
    <case>/again/checkpoints  what one process had trained and saved, loaded and saved again by two ranks
    <case>/published          weights as rollout workers get them
    listens-<rank>.json       addresses that the rank listens at
    <case>/held-<rank>.json   how many numbers of the policy, and of its moments, the rank holds
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from headrace_core.errors import TimedOut
from headrace_learner.checkpoints import checkpoint
from headrace_learner.distributed.fsdp import connect_store, host_store, join_group, own_address
from headrace_learner.training.trainer import Trainer

from .rank_cases import CASES, STEPS, be_rank, figures, in_ranks, make, train

pytestmark = pytest.mark.slow

CHECKPOINT = Path("checkpoints") / f"step-{STEPS:08d}"


class Runs:
    """The cases alone, and the folder that two ranks left."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.alone: dict[str, tuple[Trainer, list[dict[str, Any]]]] = {}
        for name in CASES:
            trainer = make(model, name)
            self.alone[name] = trainer, figures(train(trainer))
            checkpoint.save(trainer, folder / "alone" / name, STEPS)

    def in_two_ranks(self) -> None:
        in_ranks(2, be_rank, self.model, self.folder)

    def loaded(self, name: str, path: Path) -> Trainer:
        """A new trainer, alone, from a checkpoint."""
        trainer = make(self.model, name)
        checkpoint.load(trainer, path)
        return trainer


@pytest.fixture(scope="module")
def runs(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    done = Runs(model_folder, tmp_path_factory.mktemp("ranks"))
    done.in_two_ranks()
    return done


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Weights and optimizer state of all its models, by name."""
    found: dict[str, Tensor] = {}
    for model, model_optimizer in trainer.optimizers.items():
        found |= {f"{model}.{name}": tensor for name, tensor in model_optimizer.model.state_dict().items()}
        for number, moments in model_optimizer.optimizer.state_dict()["state"].items():
            found |= {f"{model}.optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    return found


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def numbers(figure: Any) -> list[float]:
    """All of a nested figure, in the order of their names."""
    if isinstance(figure, dict):
        return [x for name in sorted(figure) for x in numbers(figure[name])]
    return [float(figure)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_what_one_does(runs: Runs, name: str) -> None:
    one, expected = runs.alone[name]
    two = runs.loaded(name, runs.folder / name / CHECKPOINT)
    moved = furthest(state(one), state(make(runs.model, name)))
    assert furthest(state(one), state(two)) < 1e-5 < 1e-3 < moved
    measured = json.loads((runs.folder / name / "figures.json").read_text())
    assert len(measured) == len(expected) == STEPS
    for found, wanted in zip(measured, expected, strict=True):
        assert found.keys() == wanted.keys()
        assert numbers(found) == pytest.approx(numbers(wanted), abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_what_one_saved_two_read_and_the_other_way_round(runs: Runs, name: str) -> None:
    """Alone → two ranks → alone, bit for bit; and training goes on from it as if it had never been split."""
    one, _ = runs.alone[name]
    back = runs.loaded(name, runs.folder / name / "again" / CHECKPOINT)
    expected, found = state(one), state(back)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[tensor], found[tensor]) for tensor in expected)
    assert checkpoint.newest(runs.folder / name, STEPS).passed_over == ()


@pytest.mark.parametrize("name", CASES)
def test_a_rank_that_lost_its_snapshot_gets_it_back_from_the_other(runs: Runs, name: str) -> None:
    before = state(runs.loaded(name, runs.folder / name / CHECKPOINT))
    rebuilt = state(runs.loaded(name, runs.folder / name / "rebuilt" / CHECKPOINT))
    assert before.keys() == rebuilt.keys()
    assert all(torch.equal(before[tensor], rebuilt[tensor]) for tensor in before)


@pytest.mark.parametrize("name", ["gspo", "lora"])
def test_ranks_publish_what_their_checkpoint_holds(runs: Runs, name: str, tmp_path: Path) -> None:
    runs.loaded(name, runs.folder / name / CHECKPOINT).policy.write_weights(tmp_path)
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    assert furthest(load_file(tmp_path / file), load_file(runs.folder / name / "published" / file)) == 0.0


def test_each_rank_holds_its_share_only(runs: Runs) -> None:
    """Of parameters and of Adam's two moments, within the rounding of a first dimension that does not divide."""
    whole = sum(p.numel() for p in runs.alone["ppo"][0].policy.model.parameters())
    held = [json.loads((runs.folder / "ppo" / f"held-{rank}.json").read_text()) for rank in range(2)]
    assert [sum(parts) for parts in zip(*held, strict=True)] == [whole, 2 * whole]
    assert held[0] == pytest.approx(held[1], rel=0.01)


def test_the_network_is_the_one_that_redis_is_on() -> None:
    assert own_address("unix:///run/redis.sock") == own_address("redis://127.0.0.1:6379/0") == "127.0.0.1"


def test_ranks_of_one_machine_listen_on_loopback_alone(runs: Runs) -> None:
    heard = [json.loads((runs.folder / f"listens-{rank}.json").read_text()) for rank in range(2)]
    assert all(set(addresses) == {"127.0.0.1"} for addresses in heard)


def test_a_store_listens_where_it_says_and_nowhere_else() -> None:
    store = host_store("127.0.0.1", 1, 5)
    connect_store(store.host, store.port, 1, 5).set("here", "yes")
    assert store.get("here") == b"yes"
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", store.port), 5):
        pass


@pytest.mark.parametrize(
    ("wait", "named"),
    [
        (lambda port: connect_store("127.0.0.1", port, 2, 0.5), "rank 0 of the learner did not answer at 127.0.0.1:"),
        (
            lambda port: join_group(host_store("127.0.0.1", 2, 5), "127.0.0.1", 0, 2, 0.5, 5),
            "rank 1 of the learner's 2 ranks did not connect",
        ),
    ],
)
def test_a_wait_for_a_rank_that_does_not_come_ends(wait: Callable[[int], object], named: str) -> None:
    with socket.socket() as taken:  # a port that is nobody else's, where nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(TimedOut, match=named):
            wait(port)
        assert time.monotonic() - began < 10
