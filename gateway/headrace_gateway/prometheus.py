"""Every job's state as Prometheus series, read from Redis at each scrape: the gateway counts nothing itself.

docs/prometheus.md lists the series; a test holds it to this file. An ended job is exposed for `_AFTER_END` seconds
more, so that its last values are scraped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from headrace_core.jobs import Job, JobStore
from headrace_core.ledger import Ledger

CONTENT_TYPE = CONTENT_TYPE_LATEST
_AFTER_END = 600.0
_LATELY = 300

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
    "headrace_step_tokens": (_G, "Tokens of the last step by age.", ("job", "age")),
    "headrace_step_seconds": (_G, "Seconds of the last step by stage.", ("job", "stage")),
    "headrace_reward_mean": (_G, "Mean reward of the last step.", ("job",)),
    "headrace_evaluation_reward_mean": (_G, "Mean reward of the last evaluation.", ("job",)),
    "headrace_worker_up_seconds": (_G, "Seconds since the worker's start.", ("job", "worker")),
    "headrace_worker_busy_seconds": (_C, "Seconds of generating or training.", ("job", "worker")),
    "headrace_worker_waiting_seconds": (_C, "Seconds of waiting.", ("job", "worker", "reason")),
    "headrace_worker_tokens": (_C, "Tokens sampled or trained.", ("job", "worker")),
    "headrace_worker_errors": (_C, "Errors.", ("job", "worker", "reason")),
    "headrace_worker_requests": (_G, "Requests in flight.", ("job", "worker")),
    "headrace_update_paused_seconds": (_G, "Pause of generation at the last weight update.", ("job", "worker")),
}

Sample = tuple[str, tuple[str, ...], float]


async def exposition(redis: Redis) -> bytes:
    """The text of one scrape."""
    jobs = JobStore(redis)
    everything = await jobs.all()
    samples: list[Sample] = [
        ("headrace_jobs", (status,), n) for status, n in Counter(j.status for j in everything).items()
    ]
    for job in everything:
        if job.finished_at is None or time.time() - job.finished_at < _AFTER_END:
            samples += _of_ledger(job, (await Ledger(redis, job.id).account()).as_dict())
            samples += _of_metrics(job, await jobs.newest_metrics(job.id, _LATELY))
    registry = CollectorRegistry()
    registry.register(_Scrape(samples))
    return generate_latest(registry)


class _Scrape(Collector):
    """One scrape's samples, by family."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = tuple(samples)

    def collect(self) -> Iterator[Metric]:
        for name, (kind, text, labels) in _SERIES.items():
            family = kind(name, text, labels=labels)
            for _, values, number in (s for s in self._samples if s[0] == name):
                family.add_metric(values, number)
            yield family


def _of_ledger(job: Job, account: dict[str, Any]) -> Iterator[Sample]:
    yield "headrace_policy_version", (job.id,), account["version"]
    yield "headrace_steps", (job.id,), job.total_steps
    yield "headrace_staleness_bound", (job.id,), job.hyperparameters["max_staleness"]
    yield "headrace_token_age_largest", (job.id,), account["largest_age"]
    yield "headrace_groups_admitted", (job.id,), account["admitted"]
    yield "headrace_commits_fenced", (job.id,), account["fenced"]
    yield "headrace_tokens_sampled", (job.id,), account["sampled_tokens"]
    yield "headrace_tokens_masked", (job.id,), account["masked_tokens"]
    for state, count in account["states"].items():
        yield "headrace_groups", (job.id, state), count


def _of_metrics(job: Job, newest_first: list[tuple[str, dict[str, Any]]]) -> Iterator[Sample]:
    seen = set()
    for kind, data in newest_first:
        source = (kind, data.get("worker"))
        if source in seen:
            continue
        seen.add(source)
        yield from _MEASURED[kind](job.id, data)


def _step(job: str, data: dict[str, Any]) -> Iterator[Sample]:
    yield "headrace_reward_mean", (job,), data["reward_mean"]
    for age, of_age in data["ages"].items():
        yield "headrace_step_tokens", (job, age), of_age["tokens"]
    for stage, seconds in data["seconds"].items():
        yield "headrace_step_seconds", (job, stage), seconds


def _evaluation(job: str, data: dict[str, Any]) -> Iterator[Sample]:
    yield "headrace_evaluation_reward_mean", (job,), data["reward_mean"]


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


_MEASURED = {"step": _step, "evaluation": _evaluation, "update": _update, "worker": _worker}
