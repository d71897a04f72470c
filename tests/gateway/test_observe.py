"""What the gateway shows of a running job: ledger, staleness, measurements, as JSON, as streams and for Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace_core.jobs.recovery_counters import RecoveryCounters
from headrace_core.ledger.ledger import Ledger
from headrace_core.ledger.records import TransitionOutcome
from headrace_core.redis_access.client import run
from headrace_core.redis_access.keys import JobKeys
from headrace_core.types.metrics import (
    AgeMetrics,
    EvaluationMetrics,
    Flips,
    Pairs,
    RewardMetrics,
    StepMetrics,
    UpdateMetrics,
    WorkerMetrics,
)
from headrace_core.types.staleness import Limits
from headrace_lab.paths import ROOT
from headrace_lab.services.jobs import stored_job

from .conftest import Served

DOCS = ROOT / "docs" / "prometheus.md"
JOB = "/v1/fine_tuning/jobs/ftjob-1"


def step(number: int, reward: float = 0.5) -> StepMetrics:
    of_age = AgeMetrics(tokens=90, masked=0, effective_sample_size=1.0, clip_share=0.0, behaviour_kl=0.0)
    fields: dict[str, Any] = dict.fromkeys(StepMetrics.__struct_fields__, 0.0)
    fields |= {"step": number, "total_steps": 10, "time": 100.0 + number, "seconds": {"train": 1.5}}
    fields |= {"reward_mean": reward, "components": {}, "extra": {}, "ages": {"0": of_age, "2": of_age}}
    fields |= dict.fromkeys(("groups", "completions", "tokens", "masked_tokens"), 4)
    return StepMetrics(**fields)


WORKER = WorkerMetrics(
    worker="rollout-0", role="rollout", time=5.0, version=1, uptime=9.0, busy=7.0, waiting={"window": 2.0}, tokens=80
)
UPDATE = UpdateMetrics(
    worker="rollout-0", time=5.0, version=1, staged_seconds=0.03, paused_seconds=0.002, requests_in_flight=8
)
EVALUATION = EvaluationMetrics(
    step=1, time=5.0, seconds=1.0, samples=4, reward_mean=0.75, components={}, reward_failed=0,
    completion_length=9.0, failures={"timeout": 1},
)  # fmt: skip


def counted(worker: str, started: float, time: float) -> RewardMetrics:
    """Three groups; of the four completions scored again one changed, of the four held against a truth one flipped."""
    again = Pairs().with_group([1.0, 0.0], [1.0, 0.0]).with_group([1.0, 0.0], [1.0, 0.5])
    flips = Flips().with_group([True, True, False], [True, False, False]).with_group([True], [True])
    return RewardMetrics(
        worker=worker, started=started, time=time, groups=3, completions=12, failures={"timeout": 1, "exception": 2},
        left_out=1, again=again, again_failures={"crashed": 1}, truth={"audit": flips}, drift=again + again,
        drift_rounds=1, between={"a / b": flips.disagree},
    )  # fmt: skip


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A client, and a running job with three leased groups, one of them failed, and measurements."""
    await served.jobs.create(stored_job())
    await served.jobs.move("ftjob-1", "queued")
    await served.jobs.move("ftjob-1", "running")
    ledger = Ledger(served.redis, "ftjob-1")
    await ledger.open(Limits(batch_size=1, max_staleness=2, total_groups=10))
    leases = (await ledger.admit("rollout-0", 0, 3, 60.0)).leases
    await ledger.fail(leases[0], TransitionOutcome.REWARD_FAILED, "no such thing")
    for measured in (step(1), step(2, 0.6), WORKER, UPDATE, EVALUATION):
        await served.jobs.record("ftjob-1", measured)
    for started, time in ((1.0, 7.0), (1.0, 8.0), (2.0, 9.0)):
        await served.jobs.record_reward("ftjob-1", counted("rollout-0", started, time))
    mending = RecoveryCounters(served.redis, "ftjob-1")
    await mending.count_action("reissue")
    for _ in range(2):
        await mending.count_restart("rollout-0")
    async with httpx.AsyncClient(base_url=served.url, timeout=10) as client:
        yield client


async def test_ledger(http: httpx.AsyncClient) -> None:
    account = (await http.get(f"{JOB}/ledger")).json()
    assert (account["admitted"], account["states"]["leased"], account["states"]["reward_failed"]) == (3, 2, 1)
    assert account["balanced"]


async def test_the_history_of_a_group(http: httpx.AsyncClient) -> None:
    history = (await http.get(f"{JOB}/ledger/0")).json()
    assert [line["state"] for line in history["history"]] == ["leased", "reward_failed"]
    assert history["history"][-1]["note"].endswith("no such thing")
    assert (await http.get(f"{JOB}/ledger", params={"group": 0})).json() == history
    assert (await http.get(f"{JOB}/ledger/99")).status_code == 404


async def test_staleness(http: httpx.AsyncClient) -> None:
    shown = (await http.get(f"{JOB}/staleness")).json()
    assert (shown["max_staleness"], shown["largest_age"]) == (2, 0)
    assert [(s["step"], s["ages"]["2"]["tokens"]) for s in shown["steps"]] == [(1, 90), (2, 90)]


async def test_metrics_after_an_id(http: httpx.AsyncClient) -> None:
    everything = (await http.get(f"{JOB}/metrics")).json()
    kinds = [m["kind"] for m in everything["data"]]
    assert kinds == ["step", "step", "worker", "update", "evaluation", *["reward"] * 3]
    since = (await http.get(f"{JOB}/metrics", params={"after": everything["data"][1]["id"], "limit": 2})).json()
    assert [m["kind"] for m in since["data"]] == ["worker", "update"]
    assert since["has_more"]
    assert (await http.get(f"{JOB}/metrics", params={"after": "yesterday"})).status_code == 400


async def events(http: httpx.AsyncClient, path: str, last: str | None = None) -> list[tuple[str, str, str]]:
    """(name, id, data) of every server-sent event until the stream ends."""
    found, now = [], {"event": "", "id": "", "data": ""}
    async with http.stream("GET", path, headers={} if last is None else {"last-event-id": last}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name in now:
                now[name] = value
            elif not line:
                found.append((now["event"], now["id"], now["data"]))
                now = {"event": "", "id": "", "data": ""}
    return found


async def test_a_stream_of_events_resumes_and_ends(http: httpx.AsyncClient, served: Served) -> None:
    for message in ("one", "two", "three"):
        await served.jobs.emit_event("ftjob-1", message)
    await served.jobs.move("ftjob-1", "cancelled")
    told = await events(http, f"{JOB}/events?stream=true")
    assert [json.loads(data)["message"] for _, _, data in told[:-1]] == ["one", "two", "three"]
    assert {name for name, _, _ in told[:-1]} == {"fine_tuning.job.event"}
    assert told[-1][2] == "[DONE]"
    resumed = await events(http, f"{JOB}/events?stream=true", last=told[1][1])
    assert [json.loads(data)["message"] for _, _, data in resumed[:-1]] == ["three"]


async def test_the_dashboards_stream_has_everything_and_resumes(http: httpx.AsyncClient, served: Served) -> None:
    await served.jobs.emit_event("ftjob-1", "hello")
    await served.jobs.move("ftjob-1", "cancelled")
    sent = await events(http, f"{JOB}/stream")
    assert [name for name, _, _ in sent if name not in ("state", "done")].count("step") == 2
    assert {"state", "event", "step", "evaluation", "update", "worker", "reward"} <= {name for name, _, _ in sent}
    assert json.loads(sent[0][2])["reward"]["groups"] == 6
    assert sent[0][0] == "state"  # the page shows the job at once
    assert json.loads([data for name, _, data in sent if name == "state"][-1])["job"]["status"] == "cancelled"
    assert sent[-1][0] == "done"
    entries = [(name, entry) for name, entry, _ in sent if entry]
    resumed = await events(http, f"{JOB}/stream", last=entries[-2][1])
    assert [(name, entry) for name, entry, _ in resumed if entry] == entries[-1:]


async def test_estimated_finish_follows_the_pace(http: httpx.AsyncClient) -> None:
    job = (await http.get(JOB)).json()
    assert job["estimated_finish"] == 102 + 8 * 1  # one step a second, eight to go


async def test_prometheus_series_are_those_documented(http: httpx.AsyncClient, served: Served) -> None:
    oldest: dict[Any, int] = {"largest_age": 1, "largest_age_bound": 2}  # as settling a step writes them
    await run(served.redis.hset(JobKeys("ftjob-1").ledger, mapping=oldest))
    response = await http.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    series = {(s.name, tuple(sorted(s.labels))): s.value for f in families.values() for s in f.samples}
    documented = re.findall(r"^\| `(headrace_\w+)` \| (\w+) \| ([\w, ]+) \|", DOCS.read_text(), re.MULTILINE)
    assert {(f.name, f.type) for f in families.values()} == {(n.removesuffix("_total"), t) for n, t, _ in documented}
    for name, _, labels in documented:
        if name != "headrace_worker_errors_total":  # no worker had one
            assert (name, tuple(sorted(labels.split(", ")))) in series
    assert series["headrace_token_age_largest_bound", ("job",)] == 2
    assert series["headrace_reward_mean", ("job",)] == 0.6
    assert series["headrace_groups_admitted_total", ("job",)] == 3
    assert series["headrace_worker_waiting_seconds_total", ("job", "reason", "worker")] == 2.0
    assert series["headrace_evaluation_reward_failures", ("job", "kind")] == 1
    assert series["headrace_worker_restarts_total", ("job", "worker")] == 2
    assert series["headrace_watchdog_acts_total", ("act", "job")] == 1


async def test_what_a_reward_does_is_exposed_added_up(http: httpx.AsyncClient) -> None:
    text = (await http.get("/metrics")).text
    for line in (
        'headrace_reward_failures_total{job="ftjob-1",kind="exception"} 4.0',
        'headrace_reward_left_out_total{job="ftjob-1"} 2.0',
        'headrace_reward_again_total{job="ftjob-1"} 8.0',
        'headrace_reward_again_equal_share{bound="value",job="ftjob-1"} 0.75',
        'headrace_reward_flip_rate{bound="value",job="ftjob-1",rate="p01",truth="audit"} 0.5',
        'headrace_reward_between{bound="value",job="ftjob-1",pair="a / b"} 0.25',
        'headrace_reward_truth_total{confusion="high_but_truly_low",job="ftjob-1",truth="audit"} 2.0',
    ):
        assert line in text


async def test_what_is_not_known_is_no_sample(http: httpx.AsyncClient, served: Served) -> None:
    fields = {name: getattr(step(3), name) for name in StepMetrics.__struct_fields__}
    await served.jobs.record("ftjob-1", StepMetrics(**fields | {"reward_mean": None, "zero_variance_share": None}))
    text = (await http.get("/metrics")).text
    assert not re.search(r"^headrace_reward_(mean|zero_variance_share)\{", text, re.MULTILINE)
    assert 'headrace_step_tokens{age="0",job="ftjob-1"} 90.0' in text


async def test_the_reward_route_adds_up_workers_and_their_starts(http: httpx.AsyncClient) -> None:
    found = (await http.get(f"{JOB}/reward")).json()
    assert (found["object"], found["fine_tuning_job_id"]) == ("fine_tuning.job.reward", "ftjob-1")
    assert (found["groups"], found["completions"], found["left_out"]) == (6, 24, 2)
    assert found["failures"] == {"timeout": 2, "exception": 4}
    assert (await http.get("/v1/fine_tuning/jobs/ftjob-none/reward")).status_code == 404


async def test_the_page_asks_no_other_host(http: httpx.AsyncClient) -> None:
    for path in ("/", "/jobs/ftjob-1", "/compare?jobs=ftjob-1,ftjob-2"):
        page = await http.get(path)
        assert page.headers["content-type"].startswith("text/html")
    found = re.findall(r'(?:href|src)="([^"#][^"]*)"', page.text)  # without links within the page
    assert all(link.startswith("/") for link in found)
    for link in found:
        file = await http.get(link)
        assert file.status_code == 200, link
        assert file.headers["content-security-policy"].startswith("default-src 'self';")
    assert page.headers["content-security-policy"] == file.headers["content-security-policy"]
    folder = DOCS.parents[1] / "gateway/headrace_gateway/dashboard"
    sources = [p for p in folder.rglob("*.*") if p.suffix in (".js", ".css") and p.parent.name != "vendor"]
    assert len(sources) >= 20
    namespace = "http://www.w3.org/2000/svg"  # a name, which nobody asks
    assert not [p.name for p in sources if re.search(r"https?://", p.read_text().replace(namespace, ""))]
