"""Tokens that show that a job moves: counted from heartbeats, up to an allowance between two steps of progress."""

from __future__ import annotations

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.token_activity import TokenActivity
from headrace_core.types.metrics import WorkerMetrics

SETTINGS = Hyperparameters(group_size=4, max_tokens=100, max_context=200)
ALLOWED = 2 * 4 * 100


def beat(worker: str, tokens: int, *, started: float = 0.0, now: float = 50.0, running: int = 0) -> WorkerMetrics:
    return WorkerMetrics(
        worker=worker,
        role="learner" if worker == "learner" else "rollout",
        time=now,
        version=0,
        uptime=now - started,
        busy=0.0,
        waiting={},
        computed_tokens=tokens,
        running=running,
    )


def test_the_first_heartbeats_only_say_where_the_workers_are() -> None:
    activity = TokenActivity(SETTINGS)
    assert activity.observe([beat("rollout-0", 1000), beat("learner", 70)]) == 0
    assert activity.observe([beat("rollout-0", 1010), beat("learner", 75)]) == 15
    assert activity.observe([beat("rollout-0", 1010), beat("learner", 75)]) == 15


def test_tokens_of_rollout_workers_count_up_to_an_allowance_and_again_after_progress() -> None:
    activity = TokenActivity(SETTINGS)
    activity.observe([beat("rollout-0", 0)])
    assert activity.observe([beat("rollout-0", ALLOWED - 1)]) == ALLOWED - 1
    assert activity.observe([beat("rollout-0", ALLOWED + 50)]) == ALLOWED
    assert activity.observe([beat("rollout-0", ALLOWED + 500)]) == ALLOWED
    activity.progressed()
    assert activity.observe([beat("rollout-0", ALLOWED + 500)]) == ALLOWED
    assert activity.observe([beat("rollout-0", ALLOWED + 510)]) == ALLOWED + 10


def test_the_allowance_grows_with_the_requests_in_flight() -> None:
    """The first of them to end may be one of the longest."""
    activity = TokenActivity(SETTINGS)
    activity.observe([beat("rollout-0", 0, running=10), beat("rollout-1", 0, running=6)])
    both = [beat("rollout-0", 10**6, running=10), beat("rollout-1", 10**6, running=6)]
    assert activity.observe(both) == 2 * 16 * 100


def test_a_restarted_worker_begins_at_zero_and_uses_the_same_allowance() -> None:
    activity = TokenActivity(SETTINGS)
    activity.observe([beat("rollout-0", 0)])
    for life in range(1, 6):  # each samples a part of the allowance and dies
        counted = activity.observe([beat("rollout-0", 300, started=100.0 * life, now=100.0 * life + 50)])
        assert counted == min(300 * life, ALLOWED)


def test_a_learner_s_tokens_always_count() -> None:
    activity = TokenActivity(SETTINGS)
    activity.observe([beat("learner", 0)])
    assert activity.observe([beat("learner", 10**9)]) == 10**9
