"""Fault injection on the real system: kills or stops random processes under running jobs until N strikes are done.

    plan (seed) ─► strike ─► restart what an operator would restart ─► wait until the job trains again ─┬─► next strike
                     ▲                                               └─ or do not wait (`hurried`) ─────┤
                     └── a new job, if the last one has ended ◄─────────────────────────────────────────┘
    observer: polls the job over HTTP all the time                                   at the end: the final checks

A strike is one injected fault. A quarter of them stop a process for a while (SIGSTOP), the others kill it (SIGKILL).
The service (`headrace serve`), Redis, Ray, the engine, the sandboxed python grader and the learner are real. The seed
determines the plan, but not what the machine does between two strikes.

Checked: every job succeeds; every admitted group ends in one state and is trained at most once; no token older than
`max_staleness` is trained; a polling client never sees a policy version decrease; after every strike the job trains
again within `MAX_RECOVERY_SECONDS`; afterwards no process and no shared memory of the service is left.

    python -m headrace_chaos.campaign [--kills N] [--seed N] [--kinds learner,redis] [--arrangements embedded,cluster]
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import httpx
import psutil
from openai import OpenAIError

from headrace_chaos.deployments import Arrangement, Cluster, Embedded
from headrace_chaos.fault_injection import Strike, plan, strike
from headrace_chaos.final_checks import of_job, of_machine, remove_shared, unreported_steps
from headrace_chaos.outside_observer import Observer
from headrace_chaos.processes import MARK, ProcessTracker, kind_of
from headrace_lab.reports.benchmark_report import arguments, report

# These limits were fixed before the first run whose result counts.
MIN_STRIKES_PER_KIND = 10
"""Required in a campaign of 100 strikes or more; a smaller campaign needs one of each kind."""
MAX_RECOVERY_SECONDS = 300.0
"""From a strike until `RECOVERY_STEPS` more steps are settled; long enough for a machine under other load."""
RECOVERY_STEPS = 3
"""More steps than can have been in flight at the strike, in the learner or in answers to the observer."""
MAX_APPEAR_SECONDS = 300.0
"""Within this time a process of each kind exists, even while the system recovers from the previous strike."""
MAX_END_SECONDS = 600.0
"""Within this time a job ends after the last strike."""

STEPS, BATCH, BOUND = 40, 4, 2
GRADER = """
import re, time

def grade(sample, item):
    time.sleep(0.05)
    found = re.findall("<answer>(.*?)</answer>", sample["output_text"], re.DOTALL)
    return float([answer.strip() for answer in found] == [item["answer"]])
"""
"""It sleeps, so that strikes hit it while it grades, and so that a job lasts for several strikes."""
SETTINGS: dict[str, Any] = {
    "n_steps": STEPS,
    "batch_size": BATCH,
    "max_staleness": BOUND,
    "checkpoint_interval": 5,
    "eval_interval": 20,
    "max_reward_failures": 1.0,
}
ENVIRONMENT = {
    "HEADRACE_MAX_RESTARTS": "1000",
    "HEADRACE_RESTART_WINDOW": "5",
    "HEADRACE_LEASE_SECONDS": "10",
    "HEADRACE_WATCHDOG_SECONDS": "20",
    "HEADRACE_STALL_TIMEOUT": "400",
}
"""Many restarts are allowed, since a campaign is a crash loop. The short limits make some stops of a process outlast
its leases, and some also the watchdog's limit."""
ARRANGEMENTS: dict[str, type[Embedded] | type[Cluster]] = {"embedded": Embedded, "cluster": Cluster}


class CampaignStuck(Exception):
    """The campaign cannot continue, because the job or the service did not recover in time."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A strike that was carried out."""

    at: float
    """Seconds since the campaign began."""
    kind: str
    how: str
    pid: int
    version: int
    restarted: list[str]
    """Parts that the operator restarted."""
    stood_still: float | None
    """Longest time in seconds without a settled step after the strike; None: the next strike came without waiting."""


class Round:
    """All strikes on one arrangement of the service, on one job after the other."""

    def __init__(self, arrangement: Arrangement, processes: ProcessTracker, engine: str, began: float) -> None:
        self._arrangement = arrangement
        self._processes = processes
        self._engine = engine
        self._began = began
        self.observer = Observer(lambda: arrangement.service.address)
        self.jobs: list[str] = []
        self.checked_jobs: list[str] = []
        """Jobs that have ended and passed through the final checks."""
        self.hits: list[Hit] = []
        self.violations: list[str] = []
        self.unreported_steps = 0
        """Trained steps whose metrics were lost."""

    def run(self, strikes: list[Strike]) -> None:
        """Carry out all strikes, then wait for the last job to end. Violated guarantees are added to `violations`."""
        with self.observer:
            try:
                self._submit()
                for number, planned in enumerate(strikes, 1):
                    hit = self._carry_out(planned)
                    self.hits.append(hit)
                    after = "" if hit.stood_still is None else f", stood still for {hit.stood_still:.1f} s"
                    print(
                        f"{hit.at:7.1f} s  {number}/{len(strikes)}  {hit.kind:<10} {hit.how}, pid {hit.pid}, version "
                        f"{hit.version}{after}",
                        flush=True,
                    )
                self._wait_until(lambda: self.observer.ended, MAX_END_SECONDS, "the job does not end")
                self._close_job()
            except (CampaignStuck, AssertionError, httpx.HTTPError, OpenAIError) as error:
                self.violations.append(f"{self.jobs[-1:]}: {error}")
            self.violations += self.observer.violations

    def _carry_out(self, planned: Strike) -> Hit:
        begun = "the job does not begin"
        self._wait_until(lambda: self.observer.version >= 1 or self.observer.ended, MAX_RECOVERY_SECONDS, begun)
        self._sleep(planned.after)
        victim = self._find(planned)
        before, at = self.observer.version, time.monotonic()
        if not strike(victim, planned.stopped):
            return self._carry_out(planned)  # the process had ended by itself
        restarted = self._arrangement.restart_ended()
        stood_still = None
        if not planned.hurried:
            what = f"no {RECOVERY_STEPS} steps were settled after {planned.name} of {planned.kind}, pid {victim.pid}"
            recovered = before + RECOVERY_STEPS
            self._wait_until(
                lambda: self.observer.version >= recovered or self.observer.ended, MAX_RECOVERY_SECONDS, what
            )
            stood_still = self.observer.max_pause(at)
        return Hit(at - self._began, planned.kind, planned.name, victim.pid, before, restarted, stood_still)

    def _find(self, planned: Strike) -> psutil.Process:
        """Wait for a process of the strike's kind. For a starting worker, kill a learner so that one starts."""
        deadline = time.monotonic() + MAX_APPEAR_SECONDS
        while time.monotonic() < deadline:
            if self.observer.ended:
                self._close_job()
                self._submit()
            candidates = self._of_kind(planned.kind)
            if not candidates and planned.kind == "starting":
                for worker in self._of_kind("learner")[:1]:
                    strike(worker, None)
            if candidates:
                return candidates[int(planned.choice * len(candidates))]
            self._sleep(0.2)
        raise CampaignStuck(f"no process of the kind {planned.kind} appeared within {MAX_APPEAR_SECONDS:.0f} s")

    def _of_kind(self, kind: str) -> list[psutil.Process]:
        running = self._processes.running(self._arrangement.roots())
        if kind == "gateway":
            return [process for process in running if process.pid == self._arrangement.service.pid]
        exempt = self._arrangement.exempt()
        return [p for p in running if p.pid not in exempt and kind_of(p, self.observer.ready) == kind]

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self) -> None:
        self._wait_until(self._ready, MAX_RECOVERY_SECONDS, "the service was not ready")
        grader = {"type": "python", "name": "correct", "source": GRADER}
        settings = SETTINGS | {"engine": self._engine, "learner_ranks": self._arrangement.ranks}
        job = self._arrangement.service.submit(grader, **settings)
        self.jobs.append(job)
        self.observer.follow(job, BOUND)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self._arrangement.service.address}/readyz", timeout=10).is_success
        except httpx.TransportError:
            return False

    def _close_job(self) -> None:
        """Run the final checks on the job, which has ended."""
        self._arrangement.restart_ended()
        violations = of_job(self.observer, STEPS, BATCH)
        self.violations += violations
        self.checked_jobs.append(self.jobs[-1])
        self.unreported_steps += len(unreported_steps(self.observer))
        print(f"            {self.jobs[-1]} {self.observer.status}", *violations, sep="\n  broken: ", flush=True)

    def _wait_until(self, done: Callable[[], bool], limit: float, what: str) -> None:
        """Wait for `done()`, restarting what ends. Raises `CampaignStuck` with `what` after `limit` seconds."""
        deadline = time.monotonic() + limit
        while not done():
            if time.monotonic() > deadline:
                raise CampaignStuck(f"{what} for {limit:.0f} s; {self._diagnostics()}")
            self._sleep(0.3)

    def _sleep(self, seconds: float) -> None:
        """Sleep once, then act as the operator: restart what has ended, and resume a job that paused."""
        time.sleep(seconds)
        self._processes.running(self._arrangement.roots())  # remembers new processes, so that orphans are found later
        self._arrangement.restart_ended()
        if self.observer.status == "paused" and self._ready():  # nobody paused it: the observer has noted a violation
            self._arrangement.service.openai.fine_tuning.jobs.resume(self.jobs[-1])
            self.observer.status = "resumed"

    def _diagnostics(self) -> str:
        messages = [event["message"] for event in self.observer.get("/events?limit=8")["data"]]
        workers = self.observer.get("/workers")["data"]
        return f"the job's last events, newest first: {messages}; its workers: {workers}"


def assign(strikes: list[Strike], arrangements: dict[str, tuple[str, ...]]) -> dict[str, list[Strike]]:
    """Strikes by arrangement: the strikes of each kind are dealt round-robin to the arrangements that have the kind."""
    turn, assigned = Counter[str](), {name: list[Strike]() for name in arrangements}
    for planned in strikes:
        eligible = [name for name, kinds in arrangements.items() if planned.kind in kinds]
        assigned[eligible[turn[planned.kind] % len(eligible)]].append(planned)
        turn[planned.kind] += 1
    return assigned


def campaign(assigned: dict[str, list[Strike]], engine: str, folder: Path) -> tuple[list[Round], list[str]]:
    """Run all arrangements' strikes; returns their rounds, and what each left behind on the machine."""
    processes, began, rounds, left = ProcessTracker(), time.monotonic(), list[Round](), list[str]()
    os.environ[MARK] = processes.mark
    for name, strikes in assigned.items():
        if not strikes:
            continue
        print(f"── {name}: {len(strikes)} strikes", flush=True)
        arrangement = ARRANGEMENTS[name](folder, ENVIRONMENT)
        current = Round(arrangement, processes, engine, began)
        rounds.append(current)
        try:
            current.run(strikes)
        finally:
            processes.running(arrangement.roots())  # before they end, so that orphans are found afterwards
            status = arrangement.stop()
        if status:
            left.append(f"{name} ended with status {status}")
        left += of_machine(processes, current.checked_jobs)
        remove_shared(current.jobs)
        for process in processes.left():
            process.kill()
    return rounds, left


def summary(hits: list[Hit]) -> dict[str, dict[str, Any]]:
    """For each kind: the number of strikes, and the median and maximum of seconds without a settled step."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind in sorted({hit.kind for hit in hits}):
        of_kind = [hit for hit in hits if hit.kind == kind]
        waited = [hit.stood_still for hit in of_kind if hit.stood_still is not None]
        kinds[kind] = {
            "strikes": len(of_kind),
            "killed": sum(hit.how == "SIGKILL" for hit in of_kind),
            "stood_still_median": round(statistics.median(waited), 2) if waited else None,
            "stood_still_longest": round(max(waited), 2) if waited else None,
        }
    return kinds


def main() -> None:
    parser = arguments("campaign", __doc__)
    parser.add_argument("--kills", type=int, default=100, help="strikes in all")
    parser.add_argument("--arrangements", default=",".join(ARRANGEMENTS))
    parser.add_argument("--kinds", default=None, help="which kinds of processes; all by default")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    options = parser.parse_args()

    arrangements = {name: ARRANGEMENTS[name].kinds for name in options.arrangements.split(",")}
    if options.engine == "vllm":
        arrangements = {name: (*kinds, "engine") for name, kinds in arrangements.items()}
    known = list(dict.fromkeys(kind for kinds in arrangements.values() for kind in kinds))
    chosen = options.kinds.split(",") if options.kinds else known
    if unknown := set(chosen) - set(known):
        parser.error(f"no such kind in these arrangements: {', '.join(sorted(unknown))}; there are {', '.join(known)}")

    # exit by an exception, so that the service's processes are ended, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("chaos: ended by SIGTERM"))
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    assigned = assign(plan(options.kills, chosen, random.Random(options.seed)), arrangements)
    rounds, left = campaign(assigned, options.engine, folder)
    hits = [hit for each in rounds for hit in each.hits]
    violations = [violation for each in rounds for violation in each.violations] + left
    kinds, jobs = summary(hits), [job for each in rounds for job in each.jobs]
    required = MIN_STRIKES_PER_KIND if options.kills >= 100 else min(1, options.kills)
    too_few = [kind for kind in chosen if kinds.get(kind, {"strikes": 0})["strikes"] < required]
    passed = not violations and not too_few and len(hits) == options.kills
    for violation in violations:
        print(f"broken: {violation}")
    by_kind = ", ".join(f"{kind} {facts['strikes']}" for kind, facts in kinds.items())
    totals = f"{len(hits)} kills ({by_kind}), {len(jobs)} jobs"
    figures = f"{totals}, {time.monotonic() - began:.0f} s, {len(violations)} broken"
    result = {
        "kinds": kinds,
        "jobs": jobs,
        "broken": violations,
        "untold_steps": sum(each.unreported_steps for each in rounds),
        "unanswered_looks": [
            sum(each.observer.unanswered_polls for each in rounds),
            sum(each.observer.polls for each in rounds),
        ],
        "hits": [asdict(hit) for hit in hits],
    }
    if passed:
        shutil.rmtree(folder)
    else:
        print(f"the service's logs and data are kept in {folder}")
    report("chaos", passed, figures, result, options)


if __name__ == "__main__":
    main()
