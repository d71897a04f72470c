"""Kill anything at any moment: jobs on real parts, whose processes are struck at random until N strikes are done.

    plan (seed) ─► strike ─► the operator starts again what they had started ─► the job goes on ─┬─► next strike
                     ▲                                                       └─ or: hurried ─────┤
                     └── another job, where one has ended ◄──────────────────────────────────────┘
    watcher: what an outsider sees, all the time                                   at the end: the verdict

Real are the service (`headrace serve`), Redis, Ray, the engine, the sandboxed python grader and the learner. A fourth
of the strikes stop a process (SIGSTOP) for a while, the others kill it (SIGKILL). The plan comes from the seed; what
the machine does between two strikes does not.

What must hold: every job succeeds; every admitted group ends in one state, trained at most once; no token older than
`max_staleness` was trained; nobody outside ever saw a version run backwards; a job goes on after every strike within
`GOES_ON_SECONDS`; afterwards no process and no shared memory of the service is left.

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
from headrace_chaos.final_checks import of_job, of_machine, remove_shared, untold
from headrace_chaos.outside_observer import Watcher
from headrace_chaos.processes import MARK, Family, kind_of
from headrace_lab.reports.benchmark_report import arguments, report

# Written before the first counted run.
OF_EACH_KIND = 10
"""Strikes of a campaign of a hundred and more; of a smaller one, one of each kind."""
GOES_ON_SECONDS = 300.0
"""From a strike until `AFTERWARDS` steps were settled: on a machine that others load, too."""
AFTERWARDS = 3
"""More than were under way in the learner and on their way to who looks."""
APPEARS_SECONDS = 300.0
"""A process of every kind is there within so long, also while the system recovers from a strike before."""
ENDS_SECONDS = 600.0
"""A job that is left alone ends within so long."""

STEPS, BATCH, BOUND = 40, 4, 2
GRADER = """
import re, time

def grade(sample, item):
    time.sleep(0.05)
    found = re.findall("<answer>(.*?)</answer>", sample["output_text"], re.DOTALL)
    return float([answer.strip() for answer in found] == [item["answer"]])
"""
"""It takes a while, so that strikes meet it at work, and so that a job lasts for some of them."""
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
"""A campaign is a crash loop of its own making. Some stops outlast the leases, some the watchdog's patience, too."""
ARRANGEMENTS: dict[str, type[Embedded] | type[Cluster]] = {"embedded": Embedded, "cluster": Cluster}


class Broken(Exception):
    """The campaign cannot go on: the job does not."""


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
    """What the operator started again."""
    stood_still: float | None
    """Longest time in seconds without a settled step, from then on; None: the next strike was not to wait for any."""


class Round:
    """The strikes on one arrangement, over as many jobs as they take."""

    def __init__(self, arrangement: Arrangement, family: Family, engine: str, began: float) -> None:
        self._arrangement = arrangement
        self._family = family
        self._engine = engine
        self._began = began
        self.watcher = Watcher(lambda: arrangement.service.address)
        self.jobs: list[str] = []
        self.judged: list[str] = []
        """Those that have ended."""
        self.hits: list[Hit] = []
        self.broken: list[str] = []
        self.untold = 0
        """Steps whose measurement was lost."""

    def run(self, strikes: list[Strike]) -> None:
        """All of them, then the last job to its end. What broke is in `broken`."""
        with self.watcher:
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
                self._until(lambda: self.watcher.ended, ENDS_SECONDS, "the job does not end")
                self._close_job()
            except (Broken, AssertionError, httpx.HTTPError, OpenAIError) as error:
                self.broken.append(f"{self.jobs[-1:]}: {error}")
            self.broken += self.watcher.broken

    def _carry_out(self, planned: Strike) -> Hit:
        self._until(lambda: self.watcher.version >= 1 or self.watcher.ended, GOES_ON_SECONDS, "the job does not begin")
        self._pass(planned.after)
        victim = self._find(planned)
        before, at = self.watcher.version, time.monotonic()
        if not strike(victim, planned.stopped):
            return self._carry_out(planned)  # it ended by itself in between
        restarted = self._arrangement.tend()
        stood = None
        if not planned.hurried:
            what = f"no {AFTERWARDS} steps were settled after {planned.name} of {planned.kind}, pid {victim.pid}"
            going = before + AFTERWARDS
            self._until(lambda: self.watcher.version >= going or self.watcher.ended, GOES_ON_SECONDS, what)
            stood = self.watcher.stood_still(at)
        return Hit(at - self._began, planned.kind, planned.name, victim.pid, before, restarted, stood)

    def _find(self, planned: Strike) -> psutil.Process:
        """A process of its kind, waited for; of a worker that starts, one that another strike makes start."""
        deadline = time.monotonic() + APPEARS_SECONDS
        while time.monotonic() < deadline:
            if self.watcher.ended:
                self._close_job()
                self._submit()
            found = self._of_kind(planned.kind)
            if not found and planned.kind == "starting":
                for worker in self._of_kind("learner")[:1]:
                    strike(worker, None)
            if found:
                return found[int(planned.choice * len(found))]
            self._pass(0.2)
        raise Broken(f"no process of the kind {planned.kind} appeared within {APPEARS_SECONDS:.0f} s")

    def _of_kind(self, kind: str) -> list[psutil.Process]:
        family = self._family.look(self._arrangement.roots())
        if kind == "gateway":
            return [process for process in family if process.pid == self._arrangement.service.pid]
        spared = self._arrangement.spared()
        return [p for p in family if p.pid not in spared and kind_of(p, self.watcher.ready) == kind]

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self) -> None:
        self._until(self._in_order, GOES_ON_SECONDS, "the service was not ready")
        grader = {"type": "python", "name": "correct", "source": GRADER}
        settings = SETTINGS | {"engine": self._engine, "learner_ranks": self._arrangement.ranks}
        job = self._arrangement.service.submit(grader, **settings)
        self.jobs.append(job)
        self.watcher.follow(job, BOUND)

    def _in_order(self) -> bool:
        try:
            return httpx.get(f"{self._arrangement.service.address}/readyz", timeout=10).is_success
        except httpx.TransportError:
            return False

    def _close_job(self) -> None:
        """Judge the job that has ended."""
        self._arrangement.tend()
        found = of_job(self.watcher, STEPS, BATCH)
        self.broken += found
        self.judged.append(self.jobs[-1])
        self.untold += len(untold(self.watcher))
        print(f"            {self.jobs[-1]} {self.watcher.status}", *found, sep="\n  broken: ", flush=True)

    def _until(self, done: Callable[[], bool], limit: float, what: str) -> None:
        """Tend the arrangement until `done()`. Raises `Broken` with `what` after `limit` seconds."""
        deadline = time.monotonic() + limit
        while not done():
            if time.monotonic() > deadline:
                raise Broken(f"{what} for {limit:.0f} s; {self._last_words()}")
            self._pass(0.3)

    def _pass(self, seconds: float) -> None:
        time.sleep(seconds)
        self._family.look(self._arrangement.roots())
        self._arrangement.tend()
        if self.watcher.status == "paused" and self._in_order():  # by itself: the watcher has noted it
            self._arrangement.service.openai.fine_tuning.jobs.resume(self.jobs[-1])
            self.watcher.status = "resumed"

    def _last_words(self) -> str:
        told = [event["message"] for event in self.watcher.answer("/events?limit=8")["data"]]
        return f"the job's last events, newest first: {told}; its workers: {self.watcher.answer('/workers')['data']}"


def shares(strikes: list[Strike], arrangements: dict[str, tuple[str, ...]]) -> dict[str, list[Strike]]:
    """The strikes by arrangement: those of a kind go round the ones that have it."""
    turn, shared = Counter[str](), {name: list[Strike]() for name in arrangements}
    for each in strikes:
        having = [name for name, kinds in arrangements.items() if each.kind in kinds]
        shared[having[turn[each.kind] % len(having)]].append(each)
        turn[each.kind] += 1
    return shared


def campaign(shared: dict[str, list[Strike]], engine: str, folder: Path) -> tuple[list[Round], list[str]]:
    """Every arrangement's round, and what was left on the machine after each."""
    family, began, rounds, left = Family(), time.monotonic(), list[Round](), list[str]()
    os.environ[MARK] = family.mark
    for name, strikes in shared.items():
        if not strikes:
            continue
        print(f"── {name}: {len(strikes)} strikes", flush=True)
        arrangement = ARRANGEMENTS[name](folder, ENVIRONMENT)
        each = Round(arrangement, family, engine, began)
        rounds.append(each)
        try:
            each.run(strikes)
        finally:
            family.look(arrangement.roots())
            status = arrangement.stop()
        if status:
            left.append(f"{name} ended with status {status}")
        left += of_machine(family, each.judged)
        remove_shared(each.jobs)
        for process in family.left():
            process.kill()
    return rounds, left


def summary(hits: list[Hit]) -> dict[str, dict[str, Any]]:
    """By kind: how many, and for how long in seconds no step was settled then."""
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

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("chaos: ended by SIGTERM"))  # so that nothing of it is left
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    shared = shares(plan(options.kills, chosen, random.Random(options.seed)), arrangements)
    rounds, left = campaign(shared, options.engine, folder)
    hits = [hit for each in rounds for hit in each.hits]
    broken = [promise for each in rounds for promise in each.broken] + left
    kinds, jobs = summary(hits), [job for each in rounds for job in each.jobs]
    least = OF_EACH_KIND if options.kills >= 100 else min(1, options.kills)
    few = [kind for kind in chosen if kinds.get(kind, {"strikes": 0})["strikes"] < least]
    passed = not broken and not few and len(hits) == options.kills
    for promise in broken:
        print(f"broken: {promise}")
    by_kind = ", ".join(f"{kind} {facts['strikes']}" for kind, facts in kinds.items())
    figures = f"{len(hits)} kills ({by_kind}), {len(jobs)} jobs, {time.monotonic() - began:.0f} s, {len(broken)} broken"
    result = {
        "kinds": kinds,
        "jobs": jobs,
        "broken": broken,
        "untold_steps": sum(each.untold for each in rounds),
        "unanswered_looks": [
            sum(each.watcher.unanswered for each in rounds),
            sum(each.watcher.looks for each in rounds),
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
