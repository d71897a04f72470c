"""The gateway's memory over a small soak: the benchmark's own, with its bound. The whole one is `make bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace_lab.paths import ROOT

pytestmark = pytest.mark.slow


def test_the_gateway_stays_small(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    small = ("--requests", "400", "--jobs", "6", "--upload-mb", "60")
    command = [sys.executable, "-m", "benchmarks.gateway_memory", "--out", str(out), *small]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    sizes = json.loads(out.read_text())["sizes"]
    assert list(sizes) == ["fresh", "uploads", "jobs", "requests"]
    grown = {part: found["most"] - sizes["fresh"]["most"] for part, found in sizes.items()}
    assert grown["uploads"] < 30_000_000
    assert grown["jobs"] < 60_000_000  # with the rows in it, 60 MB of JSON were some 300
    assert "PASS" in ended.stdout.splitlines()[-1]
