"""Exposes the state of every job as Prometheus series, read from Redis at each scrape: the gateway counts nothing
itself.

docs/prometheus.md lists the series, and a test compares it with this file. An ended job is exposed for `_AFTER_END`
more seconds, so that its last values are scraped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from headrace_core.jobs.job_store import JobStore, rewards_of
from headrace_core.jobs.recovery_counters import counts_of
from headrace_core.ledger.counts import counts_of_ledger
from headrace_core.redis_access.json_records import decode_records, none_if_damaged
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.job import Job
from headrace_core.types.metrics import EvaluationMetrics, Metrics, StepMetrics, UpdateMetrics, WorkerMetrics

from ..views.reward_summary import summary

CONTENT_TYPE = CONTENT_TYPE_LATEST
_AFTER_END = 600.0

_G, _C = GaugeMetricFamily, CounterMetricFamily
_SERIES: dict[str, tuple[type[GaugeMetricFamily] | type[CounterMetricFamily], str, tuple[str, ...]]] = {
    "headrace_jobs": (_G, "Jobs by status.", ("status",)),
    "headrace_policy_version": (_G, "Newest policy version.", ("job",)),
    "headrace_steps": (_G, "Steps of the whole job.", ("job",)),
    "headrace_groups": (_G, "Groups by ledger state.", ("job", "state")),
    "headrace_groups_admitted": (_C, "Groups ever admitted.", ("job",)),
    "headrace_commits_fenced": (_C, "Late commits that were refused.", ("job",)),
    "headrace_tokens_sampled": (_C, "Tokens sampled in committed groups.", ("job",)),
    "headrace_tokens_masked": (_C, "Tokens left out of a gradient for their age.", ("job",)),
    "headrace_staleness_bound": (_G, "max_staleness, in policy versions.", ("job",)),
    "headrace_token_age_largest": (_G, "Largest age of a token that entered a gradient.", ("job",)),
    "headrace_token_age_largest_bound": (_G, "max_staleness of the step that trained it.", ("job",)),
    "headrace_step_tokens": (_G, "Tokens of the last step by age.", ("job", "age")),
    "headrace_step_seconds": (_G, "Seconds of the last step by stage.", ("job", "stage")),
    "headrace_reward_mean": (_G, "Mean reward of the last step.", ("job",)),
    "headrace_reward_zero_variance_share": (_G, "Share of the last step's groups of equal rewards.", ("job",)),
    "headrace_reward_completions": (_C, "Completions that were to be scored.", ("job",)),
    "headrace_reward_not_applicable": (_C, "Completions of which the reward had no opinion.", ("job",)),
    "headrace_reward_sample_parse_errors": (_C, "Completions that lack what the grader reads: scored 0.", ("job",)),
    "headrace_reward_failures": (_C, "Completions whose reward failed.", ("job", "kind")),
    "headrace_reward_left_out": (_C, "Failed completions that a group went on without.", ("job",)),
    "headrace_reward_again": (_C, "Completions that were scored a second time.", ("job",)),
    "headrace_reward_again_failures": (_C, "Second scorings that failed.", ("job", "kind")),
    "headrace_reward_again_skipped": (_C, "Groups not scored again, the reward being too slow.", ("job",)),
    "headrace_reward_again_equal_share": (_G, "Share of equal scores when scored again.", ("job", "bound")),
    "headrace_reward_again_difference": (_G, "Mean absolute difference when scored again.", ("job",)),
    "headrace_reward_truth": (_C, "Completions held against a truth.", ("job", "truth", "confusion")),
    "headrace_reward_flip_rate": (_G, "Estimated flip rates.", ("job", "truth", "rate", "bound")),
    "headrace_reward_disagreement": (_G, "Share on which reward and truth disagree.", ("job", "truth", "bound")),
    "headrace_reward_between": (_G, "Share on which two graders disagree.", ("job", "pair", "bound")),
    "headrace_reward_audit_failed": (_C, "Completions that could not be audited.", ("job",)),
    "headrace_reward_drift": (_G, "Mean shift of the panel against its first scores.", ("job", "bound")),
    "headrace_reward_drift_error": (_G, "Standard error of that shift.", ("job",)),
    "headrace_evaluation_reward_mean": (_G, "Mean reward of the last evaluation.", ("job",)),
    "headrace_evaluation_reward_failures": (_G, "Samples of the last evaluation that failed.", ("job", "kind")),
    "headrace_worker_up_seconds": (_G, "Seconds since the worker's start.", ("job", "worker")),
    "headrace_worker_busy_seconds": (_C, "Seconds of generating or training.", ("job", "worker")),
    "headrace_worker_waiting_seconds": (_C, "Seconds of waiting.", ("job", "worker", "reason")),
    "headrace_worker_tokens": (_C, "Tokens sampled or trained.", ("job", "worker")),
    "headrace_worker_errors": (_C, "Errors.", ("job", "worker", "reason")),
    "headrace_worker_requests": (_G, "Requests in flight.", ("job", "worker")),
    "headrace_worker_restarts": (_C, "Restarts, whatever their cause.", ("job", "worker")),
    "headrace_watchdog_acts": (_C, "Acts of whoever noticed a standstill.", ("job", "act")),
    "headrace_update_paused_seconds": (_G, "Pause of generation at the last weight update.", ("job", "worker")),
}

Sample = tuple[str, tuple[str, ...], float]


async def exposition(redis: Redis) -> bytes:
    """The text of one scrape: three round trips, for any number of jobs."""
    everything = await JobStore(redis).all()
    samples: list[Sample] = [
        ("headrace_jobs", (status,), n) for status, n in Counter(j.status for j in everything).items()
    ]
    exposed = [job for job in everything if job.finished_at is None or time.time() - job.finished_at < _AFTER_END]
    async with redis.pipeline(transaction=False) as pipe:
        for job in exposed:
            keys = JobKeys(job.id)
            for name in (keys.ledger, keys.summary, keys.rewards, keys.mending):
                pipe.hgetall(name)
        replies = await pipe.execute()
    for job, *of_job in zip(exposed, *(replies[i::4] for i in range(4)), strict=True):
        counts, newest, rewards, recoveries = of_job
        if (account := none_if_damaged(counts_of_ledger, job.id, counts)) is not None:
            samples += _of_ledger(job, account.as_dict())
        samples += _of_newest(job, newest)
        samples += _of_reward(job.id, summary(rewards_of(job.id, rewards)))
        samples += _of_recoveries(job.id, *counts_of(job.id, recoveries))
    registry = CollectorRegistry()
    registry.register(_Scrape(samples))
    return generate_latest(registry)


class _Scrape(Collector):
    """One scrape's samples, by family."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples: dict[str, list[Sample]] = {name: [] for name in _SERIES}
        for sample in samples:
            self._samples[sample[0]].append(sample)

    def collect(self) -> Iterator[Metric]:
        for name, (kind, text, labels) in _SERIES.items():
            family = kind(name, text, labels=labels)
            for _, values, number in self._samples[name]:
                family.add_metric(values, number)
            yield family


def _of_ledger(job: Job, account: dict[str, Any]) -> Iterator[Sample]:
    yield "headrace_policy_version", (job.id,), account["version"]
    yield "headrace_steps", (job.id,), job.total_steps
    yield "headrace_staleness_bound", (job.id,), job.hyperparameters["max_staleness"]
    yield "headrace_token_age_largest", (job.id,), account["largest_age"]
    yield from _known("headrace_token_age_largest_bound", (job.id,), account["largest_age_bound"])
    yield "headrace_groups_admitted", (job.id,), account["admitted"]
    yield "headrace_commits_fenced", (job.id,), account["fenced"]
    yield "headrace_tokens_sampled", (job.id,), account["sampled_tokens"]
    yield "headrace_tokens_masked", (job.id,), account["masked_tokens"]
    for state, count in account["states"].items():
        yield "headrace_groups", (job.id, state), count


def _of_newest(job: Job, newest: Mapping[bytes, bytes]) -> Iterator[Sample]:
    """Samples of a job's newest entries. `newest`: the newest entry by source, whose name begins with its kind."""
    for source, data in newest.items():
        kind, measured = _MEASURED.get(source.decode(errors="replace").partition(" ")[0], (None, None))
        if kind is not None and measured is not None:
            for record in decode_records([(JobKeys(job.id).summary, data)], kind):
                yield from measured(job.id, msgspec.to_builtins(record))


def _step(job: str, data: dict[str, Any]) -> Iterator[Sample]:
    yield from _known("headrace_reward_mean", (job,), data["reward_mean"])
    yield from _known("headrace_reward_zero_variance_share", (job,), data["zero_variance_share"])
    for age, of_age in data["ages"].items():
        yield "headrace_step_tokens", (job, age), of_age["tokens"]
    for stage, seconds in data["seconds"].items():
        yield "headrace_step_seconds", (job, stage), seconds


def _evaluation(job: str, data: dict[str, Any]) -> Iterator[Sample]:
    yield from _known("headrace_evaluation_reward_mean", (job,), data["reward_mean"])
    for kind, count in data.get("failures", {}).items():
        yield "headrace_evaluation_reward_failures", (job, kind), count


def _update(job: str, data: dict[str, Any]) -> Iterator[Sample]:
    yield "headrace_update_paused_seconds", (job, data["worker"]), data["paused_seconds"]


def _worker(job: str, data: dict[str, Any]) -> Iterator[Sample]:
    labels = (job, data["worker"])
    yield "headrace_worker_up_seconds", labels, data["uptime"]
    yield "headrace_worker_busy_seconds", labels, data["busy"]
    yield "headrace_worker_tokens", labels, data["tokens"]
    yield "headrace_worker_requests", labels, data["running"]
    for reason, seconds in data["waiting"].items():
        yield "headrace_worker_waiting_seconds", (*labels, reason), seconds
    for reason, count in data["errors"].items():
        yield "headrace_worker_errors", (*labels, reason), count


def _of_reward(job: str, figures: Mapping[str, Any]) -> Iterator[Sample]:
    for name in ("completions", "not_applicable", "sample_parse_errors", "left_out", "audit_failed"):
        yield f"headrace_reward_{name}", (job,), figures[name]
    for kind, count in figures["failures"].items():
        yield "headrace_reward_failures", (job, kind), count
    again, drift = figures["scored_again"], figures["drift"]
    yield "headrace_reward_again", (job,), again["equal"]["count"] if again["equal"] else 0
    yield "headrace_reward_again_skipped", (job,), again["skipped_groups"]
    for kind, count in again["failures"].items():
        yield "headrace_reward_again_failures", (job, kind), count
    yield from _interval("headrace_reward_again_equal_share", (job,), again["equal"])
    yield from _known("headrace_reward_again_difference", (job,), again["mean_difference"])
    for truth, flips in figures["truth"].items():
        for confusion, count in flips["confusion"].items():
            yield "headrace_reward_truth", (job, truth, confusion), count
        for rate in ("p01", "p10"):
            yield from _interval("headrace_reward_flip_rate", (job, truth, rate), flips[rate])
        yield from _interval("headrace_reward_disagreement", (job, truth), flips["disagreement"])
    for pair, figure in figures["between"].items():
        yield from _interval("headrace_reward_between", (job, pair), figure)
    yield from _interval("headrace_reward_drift", (job,), drift["mean_shift"])
    yield from _known("headrace_reward_drift_error", (job,), drift["standard_error"])


def _of_recoveries(job: str, acts: Mapping[str, int], restarts: Mapping[str, int]) -> Iterator[Sample]:
    for act, count in acts.items():
        yield "headrace_watchdog_acts", (job, act), count
    for worker, count in restarts.items():
        yield "headrace_worker_restarts", (job, worker), count


def _known(name: str, labels: tuple[str, ...], value: float | None) -> Iterator[Sample]:
    """One sample; none if the value is unknown, since it would be read as 0."""
    if value is not None:
        yield name, labels, value


def _interval(name: str, labels: tuple[str, ...], figure: dict[str, Any] | None) -> Iterator[Sample]:
    for bound in ("value", "low", "high"):
        yield from _known(name, (*labels, bound), None if figure is None else figure[bound])


_MEASURED: dict[str, tuple[type[Metrics], Callable[[str, dict[str, Any]], Iterator[Sample]]]] = {
    "step": (StepMetrics, _step),
    "evaluation": (EvaluationMetrics, _evaluation),
    "update": (UpdateMetrics, _update),
    "worker": (WorkerMetrics, _worker),
}
