"""Cost of the sandbox around user code: starting and ending its process, and grading, at each sandbox level.

The same trivial `python` grader at every level that the machine supports, in alternating rounds: one process, groups of
eight, one group at a time. `limits` is the baseline: a process with resource limits alone.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from headrace_core.config.reward_permissions import SANDBOX_LEVELS, SandboxLevel
from headrace_core.protocols.grader_check import Score
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_rewards.graders.python_source import PythonReward, PythonSpec
from headrace_rewards.protocol import Sample
from headrace_rewards.sandbox.level_probe import probe_level

MAX_EXTRA_START_SECONDS = 0.3
"""PASS: the median start at the strongest level takes at most this much longer than at `limits`."""
MIN_GRADINGS_PER_SECOND = 500
"""PASS: at least this many gradings per second at the strongest level."""

GROUP, GROUPS = 8, 100
SOURCE = "def grade(sample, item):\n    return float(item['answer'] in sample['output_text'])\n"
GROUP_OF_SAMPLES = [Sample(f"the answer is {index}", {"answer": "7"}) for index in range(GROUP)]


async def round_of(level: SandboxLevel) -> tuple[float, float, float]:
    """Run one round; returns (seconds to start, gradings per second, seconds to close)."""
    reward = PythonReward(PythonSpec(type="python", name="trivial", source=SOURCE), level=level)
    began = time.perf_counter()
    await reward.start()
    started = time.perf_counter()
    for _ in range(GROUPS):
        outcomes = await reward.score(GROUP_OF_SAMPLES)
    scored = time.perf_counter()
    await reward.close()
    assert outcomes == [Score(float(index == 7)) for index in range(GROUP)]
    return started - began, GROUP * GROUPS / (scored - started), time.perf_counter() - scored


async def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Medians over the rounds, by level."""
    supported = SANDBOX_LEVELS[: SANDBOX_LEVELS.index((await probe_level()).level) + 1]
    measured: dict[SandboxLevel, list[tuple[float, float, float]]] = {level: [] for level in supported}
    for _ in range(rounds):
        for level in supported:
            measured[level].append(await round_of(level))
    names = ("start_seconds", "gradings_per_second", "close_seconds")
    return {
        level: dict(zip(names, map(statistics.median, zip(*rows, strict=True)), strict=True))
        for level, rows in measured.items()
    }


def main() -> None:
    """Measure, report, exit with status 1 on a miss."""
    parser = arguments("sandbox", __doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    levels = asyncio.run(measure(options.rounds))
    strongest = list(levels)[-1]
    extra = levels[strongest]["start_seconds"] - levels["limits"]["start_seconds"]
    rate = levels[strongest]["gradings_per_second"]
    passed = extra <= MAX_EXTRA_START_SECONDS and rate >= MIN_GRADINGS_PER_SECOND
    figures = f"{strongest}: starts {extra * 1e3:+.0f} ms, {rate:.0f} gradings/s"
    figures += f" (limits: {levels['limits']['gradings_per_second']:.0f})"
    report("sandbox", passed, figures, {"levels": levels, "rounds": options.rounds}, options)


if __name__ == "__main__":
    main()
