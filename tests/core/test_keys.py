"""Keys: all of a job's in one hash slot, and spelled in one file only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from headrace_core.redis_access.keys import FILES, GATEWAY, JOBS, JobKeys, request
from headrace_lab.paths import ROOT


def test_all_keys_of_a_job_share_its_hash_tag() -> None:
    keys = JobKeys("ftjob-abc")
    names = [n for n, v in vars(JobKeys).items() if isinstance(v, property) and n not in ("ledger_scripts",)]
    every = [getattr(keys, name) for name in names] + keys.ledger_scripts + [keys.group(7), keys.orders("x")]
    assert len(every) > 12
    for key in every:
        assert re.search(r"\{(.*?)\}", key)[1] == "ftjob-abc"  # type: ignore[index]
    assert len(set(keys.ledger_scripts)) == 13


def test_keys_beside_the_jobs_carry_no_job() -> None:
    every = [JOBS, FILES, GATEWAY, request("00ff")]
    assert len(set(every)) == 4
    assert all(key.startswith("headrace:") and "{" not in key for key in every)


def strings(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def test_keys_are_spelled_in_one_file() -> None:
    """A string that begins with `headrace:` is a key of ours; no program file but keys.py writes one."""
    folders = ("core", "rollout", "learner", "rewards", "controller", "gateway")
    files = [p for f in folders for p in (ROOT / f).rglob("*.py")]
    strings = {
        p.relative_to(ROOT).as_posix(): [
            n.value for n in ast.walk(ast.parse(p.read_text())) if isinstance(n, ast.Constant)
        ]
        for p in files
    }
    assert len(files) > 20
    assert {n for n, found in strings.items() if any(str(s).startswith("headrace:") for s in found)} == {
        "core/headrace_core/redis_access/keys.py"
    }
    scripts = [p.read_text() for p in (ROOT / "core").rglob("*.lua")]
    assert len(scripts) > 10
    assert not any("headrace:" in script for script in scripts)
