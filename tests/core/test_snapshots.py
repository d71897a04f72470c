"""A job's snapshots are removed, and nobody else's."""

from __future__ import annotations

from pathlib import Path

from headrace_core.storage import snapshot_folder


def test_only_the_job_is_removed_and_that_twice_is_fine(tmp_path: Path) -> None:
    for job in ("ftjob-a", "ftjob-b"):
        snapshot_folder.folder(tmp_path, job).mkdir(parents=True)
        (snapshot_folder.folder(tmp_path, job) / "rank-0-0").write_bytes(b"state")
    snapshot_folder.remove(tmp_path, "ftjob-a")
    snapshot_folder.remove(tmp_path, "ftjob-a")
    assert not snapshot_folder.folder(tmp_path, "ftjob-a").exists()
    assert (snapshot_folder.folder(tmp_path, "ftjob-b") / "rank-0-0").read_bytes() == b"state"
