"""A snapshot is taken beside training, holds everything, and is believed only where it is whole and settled."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace_core.types.trajectory import Group
from headrace_learner.algorithms.presets import IMPLEMENTATIONS
from headrace_learner.checkpoints import state_bytes
from headrace_learner.checkpoints.memory_snapshot import Restored, Snapshots
from headrace_learner.training.trainer import Trainer

from .cases import assert_same_state, random_group

Make = Callable[..., Trainer]


def batch(version: int) -> list[Group]:
    return [random_group(10 * version + i, (version,), greedy=0.5) for i in range(4)]


def trained(make_trainer: Make, folder: Path, steps: int, **settings: object) -> Trainer:
    """A trainer after `steps` steps, with a snapshot after each."""
    trainer = make_trainer(**settings)
    snapshots = Snapshots(trainer, folder)
    for version in range(steps):
        trainer.step(batch(version), version)
        assert snapshots.begin(version + 1) is None
    snapshots.close()
    return trainer


@pytest.mark.parametrize(
    "settings",
    [
        *({"algorithm": name, "kl_coefficient": 0.1} for name in sorted(IMPLEMENTATIONS)),
        *(
            {"optimizer": name, "optimizer_rank": 4, "optimizer_interval": 2}
            for name in ("galore", "fira", "dct_adamw")
        ),
        {"lora_rank": 4},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_training_goes_on_as_if_nothing_had_happened(
    make_trainer: Make, tmp_path: Path, settings: dict[str, object]
) -> None:
    """The copy is under way while the next step is trained; it is of the state before."""
    whole: dict[str, object] = {**settings, "weight_decay": 0.1}
    straight = make_trainer(**whole)
    snapshots = Snapshots(straight, tmp_path)
    for version in range(2):
        straight.step(batch(version), version)
    torch.rand(5)  # chance was used, or else every state of it would be that of the start
    snapshots.begin(2)
    random_after = torch.rand(3)
    straight.step(batch(2), 2)
    snapshots.close()

    resumed = make_trainer(**whole)
    again = Snapshots(resumed, tmp_path)
    assert again.restore(0, 2) == Restored(2, ())
    again.close()
    assert torch.equal(torch.rand(3), random_after)
    resumed.step(batch(2), 2)
    assert_same_state(resumed, straight)


def test_the_state_does_not_change_before_it_is_copied(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that takes long holds the optimizer up, not the passes before it; the wait is measured."""
    trainer, passed, copying = make_trainer(), threading.Event(), threading.Event()
    copy_out, backward = state_bytes.copy_out, torch.Tensor.backward

    def slow(*given: object) -> None:
        copying.set()
        assert passed.wait(20), "the backward pass waited for the copy"
        copy_out(*given)  # type: ignore[arg-type]

    def noted(tensor: torch.Tensor) -> None:
        backward(tensor)
        assert copying.wait(20)
        passed.set()

    snapshots = Snapshots(trainer, tmp_path)
    before = make_trainer()
    monkeypatch.setattr(state_bytes, "copy_out", slow)
    monkeypatch.setattr(torch.Tensor, "backward", noted)
    snapshots.begin(1)
    trainer.step(batch(0), 0)
    assert snapshots.stalled > 0
    snapshots.close()
    found = make_trainer()
    again = Snapshots(found, tmp_path)
    assert again.restore(0, 1).version == 1
    again.close()
    assert_same_state(found, before)


def test_of_two_generations_the_newest_that_is_whole_is_taken(make_trainer: Make, tmp_path: Path) -> None:
    trained(make_trainer, tmp_path, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rank-0-0", "rank-0-1"]
    flip(tmp_path / "rank-0-0", 9000)  # the third snapshot
    resumed = make_trainer()
    snapshots = Snapshots(resumed, tmp_path)
    assert snapshots.restore(0, 3) == Restored(2, ("rank-0-0: its bytes are not those of version 3",))
    assert_same_state(resumed, trained(make_trainer, tmp_path / "other", 2))
    snapshots.begin(2)  # goes over the damaged one, not over the whole one
    snapshots.close()
    flip(tmp_path / "rank-0-0", 9000)
    assert restored(make_trainer, tmp_path, 0, 3).version == 2


def restored(make_trainer: Make, folder: Path, least: int, most: int) -> Restored:
    snapshots = Snapshots(make_trainer(), folder)
    found = snapshots.restore(least, most)
    snapshots.close()
    return found


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as content:
        content.seek(at)
        byte = content.read(1)[0]
        content.seek(at)
        content.write(bytes([byte ^ 1]))


def test_one_newer_than_the_ledger_is_never_taken_later_either(make_trainer: Make, tmp_path: Path) -> None:
    trained(make_trainer, tmp_path, 3)
    found = restored(make_trainer, tmp_path, 0, 2)
    assert found.version == 2
    assert found.passed_over == ("rank-0-0: it is of version 3, and the ledger has lost that: 2 is its newest",)
    assert restored(make_trainer, tmp_path, 0, 3) == Restored(2, ())


def test_one_older_than_the_checkpoint_is_not_taken(make_trainer: Make, tmp_path: Path) -> None:
    trained(make_trainer, tmp_path, 3)
    assert restored(make_trainer, tmp_path, 4, 9) == Restored(None, ())


def test_that_of_another_model_is_named_and_passed_over(make_trainer: Make, tmp_path: Path) -> None:
    trained(make_trainer, tmp_path, 1, lora_rank=4)
    found = restored(make_trainer, tmp_path, 0, 1)
    assert found.version is None
    assert [text.split(" it has ")[0] for text in found.passed_over] == ["rank-0-0:", "rank-0-1:"]


def test_without_memory_none_is_taken_and_the_reason_is_said(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    trainer = make_trainer()
    snapshots = Snapshots(trainer, tmp_path)
    lacking = snapshots.begin(1)
    assert lacking is not None
    assert "No space left on device" in lacking
    trainer.step(batch(0), 0)
    snapshots.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_copy_met_is_raised_where_the_state_would_change(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(state_bytes, "copy_out", broken)
    trainer = make_trainer()
    snapshots = Snapshots(trainer, tmp_path)
    snapshots.begin(1)
    with pytest.raises(RuntimeError, match="the device is gone"):
        trainer.step(batch(0), 0)
    with pytest.raises(RuntimeError, match="the device is gone"):
        snapshots.close()
    assert restored(make_trainer, tmp_path, 0, 1) == Restored(None, ())
