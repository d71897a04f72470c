"""What gateways that died have half written is deleted; what is being written stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

from headrace_gateway.files.file_store import OLD_SECONDS, sweep


def test_what_is_old_and_half_written_goes(tmp_path: Path) -> None:
    files = tmp_path / "files"
    (tmp_path / ".task-a").mkdir(parents=True)
    (tmp_path / ".task-a" / "rows.jsonl").write_text("x")
    (tmp_path / ".task-b").mkdir()
    files.mkdir()
    for name in (".file-1.partial", ".file-2.partial", "file-3"):
        (files / name).write_text("x")
    old = time.time() - OLD_SECONDS - 60
    for path in (files / ".file-1.partial", files / "file-3", tmp_path / ".task-a"):
        os.utime(path, (old, old))
    assert {path.name for path in sweep(tmp_path)} == {".file-1.partial", ".task-a"}
    assert {path.name for path in files.iterdir()} == {".file-2.partial", "file-3"}
    assert [path.name for path in tmp_path.iterdir() if path.name != "files"] == [".task-b"]
    assert sweep(tmp_path / "nowhere") == []
