"""A checkpoint holds everything; a damaged or unfinished one is never loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headrace_core.storage.summed_file import fingerprint
from headrace_core.types.trajectory import Group
from headrace_learner.algorithms.presets import IMPLEMENTATIONS
from headrace_learner.checkpoints import checkpoint
from headrace_learner.training.trainer import Trainer

from .cases import assert_same_state, random_group

Make = Callable[..., Trainer]


def batch(version: int) -> list[Group]:
    return [random_group(10 * version + i, (version,), greedy=0.5) for i in range(4)]


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
def test_training_goes_on_as_if_nothing_had_happened(make_trainer: Make, tmp_path: Path, name: str) -> None:
    """Weights, optimizer state and random state; the critic's, too; the reference stays the base model."""
    settings = {"algorithm": name, "batch_size": 4, "group_size": 4, "weight_decay": 0.1, "kl_coefficient": 0.1}
    straight = make_trainer(**settings)
    for version in range(2):
        straight.step(batch(version), version)
    torch.rand(5)  # chance was used, or else every state of it would be that of the start
    path = checkpoint.save(straight, tmp_path, 2)
    random_after = torch.rand(3)
    straight.step(batch(2), 2)

    resumed = make_trainer(**settings)
    checkpoint.load(resumed, path)
    assert torch.equal(torch.rand(3), random_after)
    resumed.step(batch(2), 2)
    assert_same_state(resumed, straight)


def test_a_checkpoint_before_the_first_update_is_like_any_other(make_trainer: Make, tmp_path: Path) -> None:
    straight = make_trainer(algorithm="ppo")
    path = checkpoint.save(straight, tmp_path, 0)
    straight.step(batch(0), 0)
    resumed = make_trainer(algorithm="ppo")
    checkpoint.load(resumed, path)
    resumed.step(batch(0), 0)
    assert_same_state(resumed, straight)


def test_saving_changes_nothing(make_trainer: Make, tmp_path: Path) -> None:
    saved, unsaved = make_trainer(), make_trainer()
    for version in range(3):
        checkpoint.save(saved, tmp_path, version)
        saved.step(batch(version), version)
        unsaved.step(batch(version), version)
    assert_same_state(saved, unsaved)


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path, 99) == checkpoint.NewestCheckpoint(None, 0, ())


def test_the_newest_whole_one_is_found(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer()
    first, second, third = (checkpoint.save(trainer, tmp_path, v) for v in (9, 10, 11))
    (first.parent / "step-00000012.partial").mkdir()  # a crash while saving
    (third / "manifest.json").unlink()
    weights = next((second / "state").glob("*.distcp"))
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    found = checkpoint.newest(tmp_path, 99)
    assert (found.path, found.version) == (first, 9)
    assert [text.split(":")[0] for text in found.passed_over] == ["step-00000011", "step-00000010"]
    assert f"state/{weights.name} is not what was written" in found.passed_over[1]


@pytest.mark.parametrize("where", [".", "state", "state/.metadata", ".."])
def test_a_checkpoint_that_another_user_may_have_written_is_passed_over(
    make_trainer: Make, tmp_path: Path, where: str
) -> None:
    before = os.umask(0)
    try:
        saved = checkpoint.save(make_trainer(), tmp_path, 1)
    finally:
        os.umask(before)
    assert checkpoint.newest(tmp_path, 99).path == saved
    (saved / where).chmod((saved / where).stat().st_mode | 0o020)
    found = checkpoint.newest(tmp_path, 99)
    assert found.path is None
    assert "can be written to by other users: remove it, or make it this user's alone" in found.passed_over[0]


def test_no_large_file_is_read_again_to_sum_it(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a model of 7 billion parameters that was 121 GB, read by one rank while the others waited."""
    read = list[str]()

    def noted(file: Path) -> tuple[int, int]:
        read.append(file.name)
        return fingerprint(file)

    monkeypatch.setattr(checkpoint, "fingerprint", noted)
    saved = checkpoint.save(make_trainer(), tmp_path, 1)
    large = {file.name for file in saved.rglob("*") if file.suffix in (".distcp", ".safetensors", ".metadata")}
    assert large == {"__0_0.distcp", "model.safetensors"}
    assert not large & set(read)
    assert ".metadata" not in read
    read.clear()
    assert checkpoint.newest(tmp_path, 99).path == saved  # and each is what the manifest says
    assert large < set(read)


def test_a_save_that_fails_leaves_no_checkpoint(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    kept = checkpoint.save(trainer, tmp_path, 1)

    def full(_: Path | None) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(trainer.policy, "write_model", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(trainer, tmp_path, 2)
    assert checkpoint.newest(tmp_path, 99).path == kept
