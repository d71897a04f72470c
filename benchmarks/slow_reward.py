"""How much a reward that takes 2 s per completion slows down generation, compared with an instant reward.

The real rollout worker with the transformers engine on the shipped adder, the real ledger on its own Redis, and the
reward in its real processes; `max_staleness` 4. A fake learner claims every full batch at once, publishes the next
version and settles, so that generation is the bottleneck. One worker runs throughout; its reward alternates between
instant and slow phases by the clock. At the start of each phase the worker gets time to adapt; then the tokens of
committed groups are counted over a window, and the rate of each slow window is compared with those of the instant
windows before and after it. The rate is tokens per CPU second of the worker's process, times the fraction of the window
in which its engine had requests: tokens/s without the influence of other processes on the machine. Tokens per second of
wall time are reported, too.

    instant   an async function of the whole group, which returns 0 or 1 without delay
    slow      the same, but each completion takes 2 s; the completions of a group are graded concurrently

A reward that takes d seconds needs rate × d groups in it at a time (Little's law): that many `workers` of the function,
and a pacing window of (max_staleness + 1) × batch_size groups that has room for them, for those being generated and for
those queued. Here about 13 groups/s × 2 s compare with 48 workers and a window of 80; `under_way` is the actual number.

    python -m benchmarks.slow_reward [--seed N] [--out FILE] [--pairs N]
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace_lab.paths import ADDER
from headrace_lab.reports.benchmark_report import arguments, report

SHARE_LIMIT = 0.9
"""PASS: the median rate with the slow reward is at least this fraction of that with the instant one."""
REWARD_SECONDS = 2.0
MAX_STALENESS = 4
PHASE_SECONDS = 15
"""Length of each phase. `time.time()` divided by it tells all processes whether the reward is instant or slow now."""
SETTLE_SECONDS = 5.0
"""Time at the start of each phase before its window begins: more than twice the reward's time."""
WORKERS = 48
JOB = "ftjob-slow-reward"
SETTINGS = {
    "engine": "transformers",
    "n_steps": 10_000,
    "batch_size": 16,
    "group_size": 16,
    "max_staleness": MAX_STALENESS,
    "max_tokens": 48,
    "max_context": 128,
    "max_running": 64,
}
REWARD = f"""\
import asyncio, time

async def correct(completions, answer):
    return await asyncio.gather(*(grade(c, a) for c, a in zip(completions, answer)))

async def grade(completion, answer):
    await asyncio.sleep({REWARD_SECONDS} if time.time() // {PHASE_SECONDS} % 2 else 0)
    return float(completion.partition("<answer>")[2].partition("</answer>")[0].strip() == str(answer))
"""


@dataclass(frozen=True)
class Window:
    reward: str
    rate: float
    """Tokens per CPU second × engine_busy."""
    tokens_per_second: float
    """Tokens per second of wall time."""
    groups_per_second: float
    reward_seconds: float
    """Median time that the window's groups waited for their rewards."""
    under_way: float
    """Mean number of leased groups: those being generated or scored."""
    engine_busy: float
    """Fraction of the window in which the engine had requests."""
    waited_for_learner: float
    """Fraction of the window in which the engine was idle because the pacing window was full."""
    steps: int
    mean_age: float
    """Mean age of the window's tokens when they were claimed."""
    masked_share: float
    failed_groups: int


class FakeLearner:
    """Settles every full batch at once, and collects statistics of the groups in the current window."""

    def __init__(self, ledger, store, limits) -> None:  # type: ignore[no-untyped-def]
        self._ledger, self._store, self._limits = ledger, store, limits
        self.reset()

    def reset(self) -> None:
        """Discard the statistics: a new window begins."""
        self.steps, self.ages, self.waits = 0, Counter[int](), list[float]()

    async def run(self) -> None:
        from headrace_core.ledger.records import Step

        term, signal = await self._ledger.enlist(), "0"
        while True:
            claim = await self._ledger.claim(term, self._limits, "mask")
            if not claim.groups:
                signal = await self._ledger.signal(signal, 1.0)
                continue
            ages = Counter(claim.version - int(v) for g in claim.groups for c in g.completions for v in c.versions)
            trained = {age: n for age, n in ages.items() if age <= MAX_STALENESS}
            name = await asyncio.to_thread(self._store.publish, claim.version + 1, term.number, copy_model)
            masked = ages.total() - sum(trained.values())
            step = Step(claim.version, tuple(g.group_id for g in claim.groups), trained, masked)
            await self._ledger.settle(term, step, name.name)
            await self._ledger.forget_before(claim.version + 1)
            self.steps += 1
            self.ages += ages
            self.waits += [g.reward_seconds for g in claim.groups]


def copy_model(folder: Path) -> None:
    shutil.copy(ADDER / "model" / "model.safetensors", folder)


async def measure(pairs: int, seed: int, url: str, root: Path) -> list[Window]:
    """Run one worker through the phases instant, slow, instant, …, instant; returns a window of each."""
    from headrace_core.config.hyperparameters import Hyperparameters
    from headrace_core.jobs.job_store import JobStore
    from headrace_core.ledger.ledger import Ledger
    from headrace_core.protocols.worker import WorkerConfig
    from headrace_core.redis_access.client import connect
    from headrace_core.storage.weight_store import WeightStore
    from headrace_rollout.worker import RolloutWorker

    code = root / "reward.py"
    code.write_text(REWARD)
    settings = Hyperparameters.model_validate(SETTINGS | {"seed": seed})
    redis = connect(url)
    ledger, jobs, store = Ledger(redis, JOB), JobStore(redis), WeightStore(root / "weights", JOB)
    await ledger.open(settings.limits(3000))
    worker = RolloutWorker.from_config(
        WorkerConfig(
            job_id=JOB,
            worker="rollout-0",
            redis_url=url,
            weights_root=str(root / "weights"),
            model_path=str(ADDER / "model"),
            training_file=str(ADDER / "train.jsonl"),
            validation_file=None,
            output_dir=str(root),
            rows=3000,
            total_steps=settings.steps(3000),
            grader={"type": "function", "name": "correct", "function": f"{code}:correct", "workers": WORKERS},
            hyperparameters=settings.model_dump(),
        )
    )
    learner = FakeLearner(ledger, store, settings.limits(3000))
    await worker.start()
    tasks = [asyncio.create_task(worker.run()), asyncio.create_task(learner.run())]
    windows = []
    try:
        phase = time.time() // (2 * PHASE_SECONDS) * 2 + 2  # number of the next full instant phase
        for number in range(2 * pairs + 1):
            await still_running(tasks, (phase + number) * PHASE_SECONDS + SETTLE_SECONDS - time.time())
            end = (phase + number + 1) * PHASE_SECONDS
            windows.append(await window("slow" if number % 2 else "instant", end, tasks, learner, ledger, jobs))
            rates = f"{windows[-1].rate:.0f}, by the clock {windows[-1].tokens_per_second:.0f} tokens/s"
            print(f"  {windows[-1].reward}: {rates}", flush=True)
    finally:
        await worker.stop()
        tasks[1].cancel()
        await asyncio.wait(tasks)
        store.remove()
        await redis.aclose()
    return windows


async def window(name: str, end: float, tasks, learner: FakeLearner, ledger, jobs) -> Window:  # type: ignore[no-untyped-def]
    """Measure from now until the wall time `end`."""
    learner.reset()
    began, before, beats, leased = time.monotonic(), await ledger.counts(), [], []
    cpu = time.process_time()
    while time.time() < end - 0.25:
        await still_running(tasks, 0.25)
        leased.append((await ledger.counts()).states["leased"])
        beats += await jobs.workers(JOB)
    after, seconds = await ledger.counts(), time.monotonic() - began
    groups = sum(after.states[s] - before.states[s] for s in ("queued", "claimed", "trained"))
    cpu, sampled = time.process_time() - cpu, after.sampled_tokens - before.sampled_tokens
    tokens, first, last = learner.ages.total(), beats[0], beats[-1]
    busy = (last.busy - first.busy) / (last.uptime - first.uptime)
    return Window(
        reward=name,
        rate=sampled / cpu * busy,
        tokens_per_second=sampled / seconds,
        groups_per_second=groups / seconds,
        reward_seconds=statistics.median(learner.waits),
        under_way=statistics.fmean(leased),
        engine_busy=busy,
        waited_for_learner=(last.waiting["window"] - first.waiting["window"]) / (last.uptime - first.uptime),
        steps=learner.steps,
        mean_age=sum(age * n for age, n in learner.ages.items()) / tokens,
        masked_share=sum(n for age, n in learner.ages.items() if age > MAX_STALENESS) / tokens,
        failed_groups=after.states["reward_failed"] + after.states["generation_failed"],
    )


async def still_running(tasks: Sequence[asyncio.Task[object]], seconds: float) -> None:
    """Wait, and raise if one of the tasks ends meanwhile."""
    ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        raise RuntimeError("the worker or the learner ended early") from task.exception()


async def alternate(pairs: int, seed: int, root: Path) -> list[Window]:
    from headrace_gateway.service.embedded_redis import RedisServer

    server = RedisServer(root / "redis")
    server.start()
    try:
        return await measure(pairs, seed, server.url, root)
    finally:
        server.stop()


def relative_rates(rates: list[float]) -> list[float]:
    """For each slow window, its rate divided by the mean of the windows before and after it."""
    return [2 * rates[i] / (rates[i - 1] + rates[i + 1]) for i in range(1, len(rates), 2)]


def main() -> None:
    parser = arguments("slow_reward", __doc__)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="headrace-slow-reward-") as root:
        windows = asyncio.run(alternate(options.pairs, options.seed, Path(root)))
    shares = relative_rates([w.rate for w in windows])
    by_clock = relative_rates([w.tokens_per_second for w in windows])
    share, slow, instant = statistics.median(shares), windows[1::2], windows[::2]
    waited = min(w.reward_seconds for w in slow)
    passed = share >= SHARE_LIMIT and waited >= REWARD_SECONDS and not any(w.failed_groups for w in windows)
    figures = (
        f"{statistics.median(w.rate for w in slow):.0f} tokens/s with a reward of {REWARD_SECONDS:g} s, "
        f"{statistics.median(w.rate for w in instant):.0f} with an instant one: median share {share:.0%}, "
        f"{min(shares):.0%} to {max(shares):.0%} (limit {SHARE_LIMIT:.0%}); "
        f"by the clock {statistics.median(by_clock):.0%}"
    )
    result = {
        "share": share,
        "shares": shares,
        "shares_by_clock": by_clock,
        "limits": {"share": SHARE_LIMIT},
        "settings": SETTINGS | {"reward_workers": WORKERS},
        "windows": [asdict(w) for w in windows],
    }
    report("slow_reward", passed, figures, result, options)


if __name__ == "__main__":
    main()
