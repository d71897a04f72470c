"""What programs read of a job's events is what was written, under the names that clients know."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from headrace_core.types.events import (
    CommandLost,
    DiskWait,
    EvaluationSummary,
    IdleStep,
    JobPaused,
    MemoryWait,
    Restarted,
    RewardFailure,
    RewardsFailed,
    RowRefused,
    RowsRefused,
    Standstill,
    TightRow,
    Wait,
    WorkerReady,
    decoded,
    encoded,
)
from headrace_core.types.metrics import EvaluationMetrics

WAIT = Wait("rollout-0", "the learner", 2.5)
FAILED = RewardFailure("timeout", "it took 9 s", "", 3)
ROW = RowRefused(3, 0, 1, "too long")
EVALUATION = EvaluationMetrics(
    step=2, time=1.0, seconds=0.5, samples=4, reward_mean=0.75, components={}, reward_failed=0, completion_length=3.0
)
DATA: list[tuple[msgspec.Struct, dict[str, Any]]] = [
    (
        Restarted("learner", "it died", 1, 3, 0.5),
        {"worker": "learner", "cause": "it died", "restart": 1, "of": 3, "delay": 0.5},
    ),
    (CommandLost("redis", "at byte 9"), {"worker": "redis", "cut": "at byte 9"}),
    (Standstill([WAIT]), {"waits": [{"who": "rollout-0", "for": "the learner", "seconds": 2.5}]}),
    (
        Standstill([WAIT], "restart"),
        {"waits": [{"who": "rollout-0", "for": "the learner", "seconds": 2.5}], "act": "restart"},
    ),
    (JobPaused("stalled", "job"), {"reason": "stalled", "who": "job"}),
    (DiskWait("learner", "disk_full", 60.0), {"worker": "learner", "reason": "disk_full", "seconds": 60.0}),
    (MemoryWait(bytes=8, share=4, held_back=2), {"reason": "memory", "bytes": 8, "share": 4, "held_back": 2}),
    (FAILED, {"kind": "timeout", "error": "it took 9 s", "traceback": "", "group": 3}),
    (RewardFailure("timeout", "late", ""), {"kind": "timeout", "error": "late", "traceback": ""}),
    (
        RewardsFailed({"timeout": 1}, [FAILED]),
        {
            "failures": {"timeout": 1},
            "samples": [{"kind": "timeout", "error": "it took 9 s", "traceback": "", "group": 3}],
        },
    ),
    (ROW, {"group": 3, "row": 0, "line": 1, "error": "too long"}),
    (RowsRefused([ROW]), {"rows": [{"group": 3, "row": 0, "line": 1, "error": "too long"}]}),
    (TightRow(0, 1, 9), {"row": 0, "line": 1, "tokens": 9}),
    (IdleStep(4, "equal"), {"step": 4, "idle": "equal"}),
    (EvaluationSummary.of(EVALUATION), json.loads(msgspec.json.encode(EVALUATION)) | {"full_valid_mean_reward": 0.75}),
]


@pytest.mark.parametrize(("data", "keys"), DATA, ids=[type(data).__name__ for data, _ in DATA])
def test_data_is_written_under_its_names_and_read_back(data: msgspec.Struct, keys: dict[str, Any]) -> None:
    stored = json.loads(json.dumps(encoded(data)))
    assert stored == keys
    assert decoded(stored, type(data)) == data


def test_data_of_another_kind_is_none() -> None:
    assert decoded(None, JobPaused) is None
    assert decoded(encoded(WAIT), JobPaused) is None
    failed = decoded({"kind": "timeout", "error": "late", "traceback": ""}, RewardFailure)
    assert failed is not None
    assert failed.group is UNSET


def test_a_ready_worker_says_its_processes() -> None:
    data = encoded(WorkerReady("learner", {"device": "cpu", "pid": 7, "rank 1": "pid 8", "rank 2": "pid 9"}))
    assert data == {"worker": "learner", "device": "cpu", "pid": 7, "rank 1": "pid 8", "rank 2": "pid 9"}
    ready = WorkerReady.of(data)
    assert ready is not None
    assert ready.pids == {"learner": 7, "rank-1": 8, "rank-2": 9}


@pytest.mark.parametrize("data", [None, {}, {"worker": "redis", "cut": "at byte 9"}])
def test_other_data_is_of_no_ready_worker(data: dict[str, Any] | None) -> None:
    assert WorkerReady.of(data) is None
