"""Whatever the folder of checkpoints holds, the newest that is whole is found, and each other is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace_learner.checkpoints import checkpoint
from headrace_learner.training.trainer import Trainer

OLD, NEW = 3, 4


@pytest.fixture
def saved(make_trainer: Callable[..., Trainer], tmp_path: Path) -> Path:
    """The newer of two checkpoints of the same trainer."""
    trainer = make_trainer()
    checkpoint.save(trainer, tmp_path, OLD)
    return checkpoint.save(trainer, tmp_path, NEW)


def rewrite(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        changed = change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest if changed is None else changed))

    return apply


def cut_short(path: Path) -> None:
    content = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(content[: len(content) // 2])


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a checkpoint")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "manifest missing": lambda path: (path / "manifest.json").unlink(),
    "manifest empty": lambda path: (path / "manifest.json").write_bytes(b""),
    "manifest cut short": cut_short,
    "manifest not JSON": lambda path: (path / "manifest.json").write_text("version: 4"),
    "manifest not text": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "manifest a list": rewrite(lambda manifest: [manifest]),
    "manifest null": lambda path: (path / "manifest.json").write_text("null"),
    "version missing": rewrite(lambda manifest: manifest.pop("version") and None),
    "version a text": rewrite(lambda manifest: manifest.update(version="4")),
    "version a fraction": rewrite(lambda manifest: manifest.update(version=4.5)),
    "version of another": rewrite(lambda manifest: manifest.update(version=NEW + 1)),
    "files missing": rewrite(lambda manifest: manifest.pop("files") and None),
    "files a list": rewrite(lambda manifest: manifest.update(files=[1, 2])),
    "files none": rewrite(lambda manifest: manifest.update(files={})),
    "fingerprint a text": rewrite(lambda manifest: manifest.update(files={"model/model.safetensors": "1234"})),
    "a file missing": lambda path: (path / "model" / "model.safetensors").unlink(),
    "a file a folder": lambda path: replace_by_folder(path / "model" / "model.safetensors"),
    "a file cut short": lambda path: os.truncate(path / "model" / "model.safetensors", 100),
    "a folder missing": lambda path: shutil.rmtree(path / "state"),
    "the folder a file": replace_by_file,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_is_used(saved: Path, tmp_path: Path, damage: str) -> None:
    DAMAGE[damage](saved)
    found = checkpoint.newest(tmp_path, NEW)
    assert (found.path, found.version) == (saved.with_name(f"step-{OLD:08d}"), OLD)
    (named,) = found.passed_over
    assert named.startswith(f"{saved.name}: ")
    assert "\n" not in named


def test_what_is_no_checkpoint_is_not_looked_at(saved: Path, tmp_path: Path) -> None:
    for name in ("step-00000009.partial", "step-00000008.ahead", "step-x", "step-9", "notes"):
        (saved.parent / name).mkdir()
    assert checkpoint.newest(tmp_path, 99) == checkpoint.NewestCheckpoint(saved, NEW, ())


def test_one_newer_than_the_ledger_is_put_aside_for_ever(saved: Path, tmp_path: Path) -> None:
    """Also once the ledger has reached its version again: it may have got there by other groups."""
    found = checkpoint.newest(tmp_path, OLD)
    assert found.version == OLD
    assert found.passed_over == (
        f"{saved.name}: the ledger has lost the steps to it, and is at version {OLD}; put aside as .ahead",
    )
    assert (saved.with_name(saved.name + ".ahead") / "model" / "model.safetensors").is_file()
    assert checkpoint.newest(tmp_path, NEW) == checkpoint.NewestCheckpoint(saved.with_name(f"step-{OLD:08d}"), OLD, ())


def test_the_older_one_at_the_same_version_makes_way_only_for_a_whole_one(
    make_trainer: Callable[..., Trainer], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()

    def full(_: Path | None) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(trainer.policy, "write_model", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(trainer, tmp_path, NEW)
    assert checkpoint.newest(tmp_path, NEW) == checkpoint.NewestCheckpoint(saved, NEW, ())


def test_all_of_it_is_on_the_disk_before_it_has_its_name(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file and folder is synced while the folder is still a partial one, and afterwards the name itself."""
    synced: list[Path] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    path = checkpoint.save(make_trainer(), tmp_path, NEW)
    partial = path.with_name(path.name + ".partial")
    expected = {partial / inner.relative_to(path) for inner in path.rglob("*")} | {partial}
    assert expected <= set(synced)
    assert synced[-1] == path.parent
