"""The demo's additions with a heavy tail of lengths: the solution is checked repeatedly before the answer.

For 37 + 56, with two checks::

    first, seven plus six is thirteen, so we need to carry the one. three plus five plus one is nine. check one, seven
    plus six ends in three, nine tens, fine. check two, seven plus six ends in three, nine tens, fine. <answer> 93
    </answer>

The number of checks is random and independent of correctness: a check repeats the result of the solution, right or
wrong. There are k or more checks (k > 0) with probability `CHECKED`/(1 + k), and at most `MAX_CHECKS`. Checks are
numbered, so that a small model can learn when to stop. Problems, kinds of solution, data rows and rewards are the
adder's.
"""

from __future__ import annotations

import random

from ..adder.adder_problems import WORDS, Problem, completion, demonstration

PIECES = (" check", " tens", " fine")
"""Tokens that the adder does not have."""
MAX_TOKENS = 256
"""Maximum length of a completion, including its end token."""
CHECK_TOKENS = 15
MAX_CHECKS = 14
"""31 tokens of the longer kind of solution and 14 checks are 241 tokens."""
CHECKED = 0.8
"""Below 1: fewer than half of the completions have a check, so that greedy completions have none."""
CONTEXT = 512
ANSWER = "<answer>"


def check(problem: Problem, answer: str, number: int) -> str:
    """The text of check `number`, which has `CHECK_TOKENS` tokens."""
    tens, ones = divmod(int(answer), 10)
    return (
        f" check {WORDS[number]}, {WORDS[problem.left % 10]} plus {WORDS[problem.right % 10]} ends in {WORDS[ones]}, "
        f"{WORDS[tens]} tens, fine."
    )


def number_of_checks(rng: random.Random) -> int:
    """Random: k or more (k > 0) with probability `CHECKED`/(1 + k), at most `MAX_CHECKS`; the mean is 1.9, the median
    0."""
    return min(max(int(CHECKED / (1.0 - rng.random())) - 1, 0), MAX_CHECKS)


def long_demonstration(problem: Problem, rng: random.Random) -> str:
    """One completion of the supervised corpus: the adder's, with checks before the answer."""
    reasoning, answer = demonstration(problem, rng).split(ANSWER)
    answer = answer.split()[0]
    checks = "".join(check(problem, answer, number) for number in range(1, number_of_checks(rng) + 1))
    return completion(reasoning.rstrip() + checks, answer)
