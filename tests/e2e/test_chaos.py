"""A small campaign, as `make chaos` runs large ones: one process of each main kind is killed under a running job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

KINDS = ("rollout", "learner", "reward", "controller", "gateway", "redis", "node")


def test_a_job_outlives_one_death_of_each_kind(tmp_path: Path) -> None:
    out = tmp_path / "campaign.json"
    options = ["--kills", str(len(KINDS)), "--kinds", ",".join(KINDS), "--arrangements", "embedded"]
    command = [sys.executable, "-m", "headrace_chaos.campaign", *options, "--seed", "1", "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-2000:]
    assert ended.stdout.splitlines()[-1].startswith(f"chaos: PASS {len(KINDS)} kills")
    result = json.loads(out.read_text())
    assert {kind: facts["killed"] for kind, facts in result["kinds"].items()} == dict.fromkeys(KINDS, 1)
