"""What a reward that takes 2 s for each completion costs generation: tokens/s beside those of an instant reward.

The real rollout worker with the transformers engine on the shipped adder, the real ledger on a Redis of its own, and
the reward in its real processes; `max_staleness` 4. The learner is played: it claims every full batch at once, makes it
the next version and settles, so that generation is what limits. Rounds with either reward alternate; each starts its
worker anew, warms up, and counts the tokens of committed groups over a window.

    instant   an async function of the whole group: 0 or 1 at once
    slow      the same, and each completion takes 2 s; those of a group pass at once

A reward that takes d seconds needs rate × d groups under way in it (Little's law): so many `workers` of the function,
and a pacing window, (max_staleness + 1) × batch_size groups, that holds them beside those being generated and those
queued. Here at most 7 groups/s × 2 s stand against 24 workers and a window of 80; `under_way` says how many there were.

    python benchmarks/slow_reward.py [--seed N] [--out FILE] [--rounds N]
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from _report import arguments, report

SHARE_LIMIT = 0.9
"""PASS: with the slow reward, at least this share of the instant one's tokens/s."""
REWARD_SECONDS = 2.0
MAX_STALENESS = 4
WARM_UP_SECONDS = 6.0
WINDOW_SECONDS = 15.0
WORKERS = 24
ADDER = Path(__file__).resolve().parents[1] / "examples" / "adder"
SETTINGS = {
    "engine": "transformers",
    "n_steps": 10_000,
    "batch_size": 16,
    "group_size": 8,
    "max_staleness": MAX_STALENESS,
    "max_tokens": 48,
    "max_context": 128,
    "max_running": 64,
}
REWARD = """\
import asyncio

async def correct(completions, answer):
    return await asyncio.gather(*(judged(c, a) for c, a in zip(completions, answer)))

async def judged(completion, answer):
    await asyncio.sleep({seconds})
    return float(completion.partition("<answer>")[2].partition("</answer>")[0].strip() == str(answer))
"""


@dataclass(frozen=True)
class Round:
    reward: str
    tokens_per_second: float
    groups_per_second: float
    reward_seconds: float
    """Mean of what a group of the window waited for its reward."""
    under_way: float
    """Mean of the groups that were leased: being generated, or scored."""
    engine_busy: float
    """Share of the window in which the engine had requests."""
    waited_for_learner: float
    """Share in which the engine was idle because the pacing window was full."""
    steps: int
    mean_age: float
    """Of the window's tokens when they were claimed."""
    masked_share: float
    failed_groups: int


class Learner:
    """Settles every full batch at once, and keeps what the window's groups say of themselves."""

    def __init__(self, ledger, store, limits) -> None:  # type: ignore[no-untyped-def]
        self._ledger, self._store, self._limits = ledger, store, limits
        self.forget()

    def forget(self) -> None:
        """A window begins."""
        self.steps, self.ages, self.waits = 0, Counter[int](), list[float]()

    async def run(self) -> None:
        from headrace_core.ledger import Step

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
            await self._ledger.covered(claim.version + 1)
            self.steps += 1
            self.ages += ages
            self.waits += [g.reward_seconds for g in claim.groups]


def copy_model(folder: Path) -> None:
    shutil.copy(ADDER / "model" / "model.safetensors", folder)


async def measure(name: str, seconds: float, number: int, seed: int, url: str, root: Path) -> Round:
    """One round: a worker from its start to its end."""
    from headrace_core.hyperparameters import Hyperparameters
    from headrace_core.jobs import JobStore
    from headrace_core.ledger import Ledger
    from headrace_core.redis import connect
    from headrace_core.weights import WeightStore
    from headrace_core.workers import WorkerConfig
    from headrace_rollout.worker import RolloutWorker

    job = f"ftjob-{name}-{number}"
    code = root / f"{name}.py"
    code.write_text(REWARD.format(seconds=seconds))
    settings = Hyperparameters.model_validate(SETTINGS | {"seed": seed + number})
    redis = connect(url)
    ledger = Ledger(redis, job)
    await ledger.open(settings.limits(3000))
    store = WeightStore(root / "weights", job)
    worker = RolloutWorker(
        WorkerConfig(
            job_id=job,
            worker="rollout-0",
            redis_url=url,
            weights_root=str(root / "weights"),
            model_path=str(ADDER / "model"),
            training_file=str(ADDER / "train.jsonl"),
            validation_file=None,
            output_dir=str(root),
            rows=3000,
            total_steps=settings.steps(3000),
            grader={"type": "function", "name": name, "function": f"{code}:correct", "workers": WORKERS},
            hyperparameters=settings.model_dump(),
        )
    )
    learner = Learner(ledger, store, settings.limits(3000))
    await worker.start()
    tasks = [asyncio.create_task(worker.run()), asyncio.create_task(learner.run())]
    try:
        await still_running(tasks, WARM_UP_SECONDS)
        return await window(name, job, tasks, learner, ledger, JobStore(redis))
    finally:
        await worker.stop()
        tasks[1].cancel()
        await asyncio.wait(tasks)
        store.remove()
        await redis.aclose()


async def window(name: str, job: str, tasks, learner: Learner, ledger, jobs) -> Round:  # type: ignore[no-untyped-def]
    """The figures of WINDOW_SECONDS."""
    learner.forget()
    began, before, beats, leased = time.monotonic(), await ledger.account(), [], []
    while time.monotonic() - began < WINDOW_SECONDS:
        await still_running(tasks, 0.25)
        leased.append((await ledger.account()).states["leased"])
        beats += await jobs.workers(job)
    after, seconds = await ledger.account(), time.monotonic() - began
    groups = sum(after.states[s] - before.states[s] for s in ("queued", "claimed", "trained"))
    tokens, first, last = learner.ages.total(), beats[0], beats[-1]
    return Round(
        reward=name,
        tokens_per_second=(after.sampled_tokens - before.sampled_tokens) / seconds,
        groups_per_second=groups / seconds,
        reward_seconds=statistics.fmean(learner.waits),
        under_way=statistics.fmean(leased),
        engine_busy=(last.busy - first.busy) / (last.uptime - first.uptime),
        waited_for_learner=(last.waiting["window"] - first.waiting["window"]) / (last.uptime - first.uptime),
        steps=learner.steps,
        mean_age=sum(age * n for age, n in learner.ages.items()) / tokens,
        masked_share=sum(n for age, n in learner.ages.items() if age > MAX_STALENESS) / tokens,
        failed_groups=after.states["reward_failed"] + after.states["generation_failed"],
    )


async def still_running(tasks: list[asyncio.Task[object]], seconds: float) -> None:
    """Let them work; raises what one of them ended with."""
    ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        raise RuntimeError("the worker or the learner ended early") from task.exception()


async def rounds(count: int, seed: int, root: Path) -> list[Round]:
    from headrace_gateway.redis_server import RedisServer

    server = RedisServer(root / "redis")
    server.start()
    found = []
    try:
        for number in range(count):
            for name, seconds in (("instant", 0.0), ("slow", REWARD_SECONDS)):
                found.append(await measure(name, seconds, number, seed, server.url, root))
                print(f"  round {number + 1}, {name}: {found[-1].tokens_per_second:.0f} tokens/s", flush=True)
    finally:
        server.stop()
    return found


def main() -> None:
    parser = arguments("slow_reward", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="headrace-slow-reward-") as root:
        found = asyncio.run(rounds(options.rounds, options.seed, Path(root)))
    rates = {n: statistics.median(r.tokens_per_second for r in found if r.reward == n) for n in ("instant", "slow")}
    share = rates["slow"] / rates["instant"]
    held = [r for r in found if r.reward == "slow"]
    passed = share >= SHARE_LIMIT and all(r.failed_groups == 0 and r.reward_seconds >= REWARD_SECONDS for r in held)
    figures = (
        f"{rates['slow']:.0f} tokens/s with a reward of {REWARD_SECONDS:g} s, {rates['instant']:.0f} with an instant "
        f"one: {share:.0%} (limit {SHARE_LIMIT:.0%})"
    )
    result = {
        "share": share,
        "limits": {"share": SHARE_LIMIT},
        "settings": SETTINGS | {"reward_workers": WORKERS},
        "rounds": [asdict(r) for r in found],
    }
    report("slow_reward", passed, figures, result, options)


if __name__ == "__main__":
    main()
