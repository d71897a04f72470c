"""Throughput of grading: a python grader in its sandbox, and math-verify in batches compared with single calls.

    python        gradings per second of a trivial `grade(sample, item)` with default permissions: groups of 16, all
                  submitted at once, 2 processes
    math_verify   batch    completions per second, in groups of 16 as a rollout worker submits them, all at once,
                           2 processes
                  single   the same completions with the same grader and number of processes, one completion per call,
                           each call awaited before the next
                  library  the same completions with math-verify alone: parse, parse, verify, sequentially in this
                           process, without time limits, grader and other processes

math-verify has two workloads. `boxed`: every completion ends in a boxed answer. `mixed`: one in twelve ends in a
formula without a box, and one in twenty gives no answer, so that math-verify reads the last formula of its text, which
no other completion shares: such a completion takes ten times as long, and batching cannot change that.

Every round makes new completions, so that no cache helps across rounds; single and batch use separate processes. All
verdicts of a round must equal the library's. Figures are medians over rounds, in which the three run in random order.

    python -m benchmarks.rewards [--seed N] [--out FILE] [--rounds N]
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from math_verify import parse, verify

from headrace_core.protocols.grader_check import Outcome, Score
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.rewards import started
from headrace_rewards.protocol import Reward, Sample
from headrace_rewards.registry import build

PYTHON_LIMIT = 500.0
"""PASS: at least this many gradings per second of a trivial function."""
BATCH_LIMIT = 5.0
"""PASS: math-verify grades at least this many times as many completions per second in batches as in single calls."""

GROUP = 16
"""Completions of one prompt."""
WORKERS = 2
PYTHON_GROUPS = 60
"""Groups per round of the python grader."""
MATHS_GROUPS = 20
"""Groups per round of math-verify."""

GRADE = """
def grade(sample, item):
    return 1.0 if item["answer"] in sample["output_text"] else 0.0
"""
PYTHON = {"type": "python", "name": "trivial", "source": GRADE, "workers": WORKERS}
MATHS = {"type": "math_verify", "name": "maths", "workers": WORKERS}

Answers = tuple[str, list[str]]
"""A reference answer, and answers of completions, some of which are equal to it in the same or another form."""
Groups = list[list[Sample]]


def whole_number(rng: random.Random) -> Answers:
    right = rng.randrange(2, 5000)
    return str(right), [str(right)] * 2 + [str(right + 1), str(2 * right), str(-right)]


def fraction(rng: random.Random) -> Answers:
    top, bottom = rng.randrange(1, 100), rng.randrange(2, 100)
    wrong = [rf"\frac{{{bottom}}}{{{top}}}", rf"\frac{{{top}}}{{{bottom + 1}}}"]
    return rf"\frac{{{top}}}{{{bottom}}}", [rf"\frac{{{top}}}{{{bottom}}}", f"{2 * top}/{2 * bottom}", *wrong]


def root(rng: random.Random) -> Answers:
    a, b = rng.randrange(2, 50), rng.randrange(2, 50)
    return rf"{a}+\sqrt{{{b}}}", [rf"{a}+\sqrt{{{b}}}", rf"\sqrt{{{b}}}+{a}", rf"{b}+\sqrt{{{a}}}", rf"{a}\sqrt{{{b}}}"]


def polynomial(rng: random.Random) -> Answers:
    a, b = rng.randrange(1, 9), rng.randrange(1, 9)
    right = f"x^2+{a + b}x+{a * b}"
    return right, [right, f"(x+{a})(x+{b})", f"x^2+{a + b}x", f"x^2-{a + b}x+{a * b}"]


def interval(rng: random.Random) -> Answers:
    low, high = rng.randrange(0, 50), rng.randrange(51, 99)
    return f"[{low},{high})", [f"[{low},{high})", f"[{low},{high}]", f"({low},{high})"]


KINDS: tuple[tuple[Callable[[random.Random], Answers], int], ...] = (
    (whole_number, 10),
    (fraction, 4),
    (root, 3),
    (polynomial, 2),
    (interval, 1),
)
"""Kinds of reference answers with their weights: most contest and textbook problems ask for numbers."""
STEPS = (
    "We write $f(x) = {a}x^2 - {b}x + {c}$ and look for its roots.",
    "Since ${a} + {b} = {sum}$, the second term is ${sum}$.",
    r"Then \[ S = \frac{{{a}}}{{{b}}} + \frac{{{c}}}{{{a}}} \] by the first equation.",
    "Let us check this with {b} and {c}: it holds.",
    "There are {c} ways to choose the first, and for each of them {b} for the second.",
)
ENDS = (
    r"So the answer is $\boxed{{{}}}$.",
    r"Therefore \boxed{{{}}}",
    r"Hence we get $\boxed{{{}}}$",
    "Thus it is ${}$.",
)


@dataclass(frozen=True)
class Workload:
    """How completions end."""

    name: str
    ends: tuple[int, ...]
    """Weights of ENDS."""
    silent: float
    """Share of completions without an answer."""


WORKLOADS = (Workload("boxed", (5, 3, 3, 0), 0.0), Workload("mixed", (5, 3, 3, 1), 0.05))


def completion(answers: Sequence[str], workload: Workload, rng: random.Random) -> str:
    """A random completion: some steps, and a last sentence with one of the answers or none."""
    lines = []
    for _ in range(rng.randrange(3, 8)):
        a, b, c = (rng.randrange(2, 90) for _ in range(3))
        lines.append(rng.choice(STEPS).format(a=a, b=b, c=c, sum=a + b))
    if rng.random() < workload.silent:
        return " ".join([*lines, "I do not see how to go on."])
    return " ".join([*lines, rng.choices(ENDS, workload.ends)[0].format(rng.choice(answers))])


def maths_groups(workload: Workload, rng: random.Random) -> Groups:
    """The groups of one round."""
    groups = []
    problems, weights = zip(*KINDS, strict=True)
    for problem in rng.choices(problems, weights, k=MATHS_GROUPS):
        gold, answers = problem(rng)
        groups.append([Sample(completion(answers, workload, rng), {"answer": gold}) for _ in range(GROUP)])
    return groups


def values(outcomes: Sequence[Outcome]) -> list[float]:
    """The scores' values. Raises if an outcome is not a score: a failure is faster than grading and must not count."""
    scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
    if len(scores) != len(outcomes):
        raise RuntimeError(f"not a score: {next(o for o in outcomes if not isinstance(o, Score))}")
    return [score.value for score in scores]


async def in_batches(reward: Reward, groups: Groups) -> list[float]:
    return values([o for group in await asyncio.gather(*map(reward.score, groups)) for o in group])


async def one_by_one(reward: Reward, groups: Groups) -> list[float]:
    return values([(await reward.score([sample]))[0] for group in groups for sample in group])


async def by_the_library(groups: Groups) -> list[float]:
    return [plain_verdict(sample.output_text, sample.item["answer"]) for group in groups for sample in group]


def plain_verdict(text: str, gold: str) -> float:
    """math-verify called as in its documentation, but without time limits, which would only slow it down."""
    reference, answer = (parse(side, parsing_timeout=None) for side in (rf"\boxed{{{gold}}}", text))
    return float(verify(reference, answer, timeout_seconds=None))


async def timed(work: Awaitable[list[float]]) -> tuple[float, list[float]]:
    """(completions per second, verdicts)."""
    start = time.perf_counter()
    verdicts = await work
    return len(verdicts) / (time.perf_counter() - start), verdicts


async def measure_python(rounds: int) -> list[float]:
    """Gradings per second of each round, after one warm-up round."""
    groups = [[Sample(f"the sum is {n + i}", {"answer": str(n)}) for i in range(GROUP)] for n in range(PYTHON_GROUPS)]
    async with started(build(PYTHON)) as reward:
        return [(await timed(in_batches(reward, groups)))[0] for _ in range(rounds + 1)][1:]


async def measure_maths(workload: Workload, rounds: int, seed: int) -> dict[str, Any]:
    """Medians over rounds and completions per second of each round, after one warm-up round."""
    rng = random.Random(seed)
    rates: dict[str, list[float]] = {"library": [], "single": [], "batch": []}
    async with started(build(MATHS)) as single, started(build(MATHS)) as batch:
        ways = {
            "library": by_the_library,
            "single": lambda groups: one_by_one(single, groups),
            "batch": lambda groups: in_batches(batch, groups),
        }
        for _ in range(rounds + 1):
            groups = maths_groups(workload, rng)
            verdicts = {}
            for way in rng.sample(sorted(ways), len(ways)):
                rate, verdicts[way] = await timed(ways[way](groups))
                rates[way].append(rate)
            if not verdicts["library"] == verdicts["single"] == verdicts["batch"]:
                raise RuntimeError("a batch was judged otherwise than its completions alone")
    rates = {way: figures[1:] for way, figures in rates.items()}
    return {
        "workload": workload.name,
        "batch_over_single": median_ratio(rates["batch"], rates["single"]),
        "batch_over_library": median_ratio(rates["batch"], rates["library"]),
        "per_second": {way: statistics.median(figures) for way, figures in rates.items()},
        "rounds": rates,
    }


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def main() -> None:
    parser = arguments("rewards", __doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    load = os.getloadavg()[0]
    python = asyncio.run(measure_python(options.rounds))
    maths = [asyncio.run(measure_maths(workload, options.rounds, options.seed)) for workload in WORKLOADS]
    gradings = statistics.median(python)
    for case in maths:
        rates = ", ".join(f"{way} {rate:.0f}" for way, rate in case["per_second"].items())
        print(f"math_verify, {case['workload']}: completions a second: {rates}")
    result = {
        "limits": {"python": PYTHON_LIMIT, "batch": BATCH_LIMIT},
        "load_at_start": round(load, 2),
        "python": {"gradings_per_second": gradings, "rounds": python},
        "math_verify": maths,
    }
    ratios = ", ".join(
        f"{c['workload']} {c['batch_over_single']:.1f}x single calls ({c['batch_over_library']:.1f}x the library)"
        for c in maths
    )
    figures = (
        f"python {gradings:.0f} gradings/s, limit {PYTHON_LIMIT:.0f}; "
        f"math_verify in batches: {ratios}, limit {BATCH_LIMIT:.0f}x"
    )
    passed = gradings >= PYTHON_LIMIT and all(case["batch_over_single"] >= BATCH_LIMIT for case in maths)
    report("rewards", passed, figures, result, options)


if __name__ == "__main__":
    main()
