"""Complete checkpoints are told from those that are being written, and only the latter are removed."""

from __future__ import annotations

from pathlib import Path

from headrace_core.storage.job_folder import JobFolder, remove_partials


def test_paths_of_a_job(tmp_path: Path) -> None:
    folder = JobFolder.of(tmp_path, "ftjob-1")
    assert folder.path == tmp_path / "jobs" / "ftjob-1"
    paths = (folder.checkpoint(40), folder.model, folder.export("wandb"), folder.reward_code)
    assert [str(path.relative_to(folder.path)) for path in paths] == [
        "checkpoints/step-00000040", "model", "exports/wandb", "reward_code"
    ]  # fmt: skip


def test_only_complete_checkpoints_are_found_and_only_the_others_are_removed(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    for name in ("step-00000002", "step-00000010", "step-00000012.partial", "step-00000014.ahead", "step-x"):
        (folder.checkpoints / name).mkdir(parents=True)
    (tmp_path / "model.partial").mkdir()
    folder.model.mkdir()
    assert sorted(folder.completed_checkpoints()) == [(2, folder.checkpoint(2)), (10, folder.checkpoint(10))]
    remove_partials(tmp_path)
    assert not any(tmp_path.rglob("*.partial"))
    assert folder.model.is_dir()
    assert len(list(folder.checkpoints.iterdir())) == 4
