"""The addition problems, how their solutions are spelled out, and the rows of the data files.

Invariants (tested):

* a train problem is never a validation problem, in either order of its operands;
* a solution of the *carry* kind is right for every problem, one of the *plain* kind only if the ones make no carry;
* the seed determines everything: same seed, same bytes.

The two kinds of solution for 37 + 56::

    carry   first, seven plus six is thirteen, so we need to carry the one. three plus five plus one is nine.
            <answer> 93 </answer>
    plain   simply, seven plus six ends in three. three plus five is eight. <answer> 83 </answer>

The first word determines the kind. The base model mostly starts with "simply" and then forgets the carry.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)

PROMPT = "What is {left} + {right}?"
TRAIN_ROWS = 3000
VALIDATION_ROWS = 256

# Fractions of the supervised corpus, which determine where reinforcement learning starts. The better kind is shown the
# more often, the larger the first operand is (0.11 to 0.35 of the time), so that greedy choices change one after the
# other and not all at once. Either kind may be off by one in its last sum, which keeps sampled accuracy below greedy
# accuracy.
CARRY_KIND_SHARE, CARRY_KIND_SHARE_PER_TEN = 0.08, 0.03
CARRY_KIND_SLIPS = 0.03
PLAIN_KIND_SLIPS = 0.25


@dataclass(frozen=True)
class Problem:
    """`left` + `right`, both from 10 to 99."""

    left: int
    right: int

    @property
    def answer(self) -> str:
        return str(self.left + self.right)

    @property
    def carry(self) -> bool:
        """Whether the ones add up to ten or more."""
        return self.left % 10 + self.right % 10 >= 10

    @property
    def prompt(self) -> str:
        return PROMPT.format(left=self.left, right=self.right)


def carry_working(problem: Problem, slip: int = 0) -> tuple[str, str]:
    """Reasoning and answer of the carry kind; `slip` is added to the tens (0: a right solution)."""
    (left_tens, left_ones), (right_tens, right_ones) = divmod(problem.left, 10), divmod(problem.right, 10)
    ones, tens = left_ones + right_ones, problem.carry + left_tens + right_tens + slip
    carried, extra = ("the one", " plus one") if problem.carry else ("nothing", "")
    reasoning = (
        f"first, {WORDS[left_ones]} plus {WORDS[right_ones]} is {WORDS[ones]}, so we need to carry {carried}. "
        f"{WORDS[left_tens]} plus {WORDS[right_tens]}{extra} is {WORDS[tens]}."
    )
    return reasoning, f"{tens}{ones % 10}"


def plain_working(problem: Problem, slip: int = 0) -> tuple[str, str]:
    """Reasoning and answer of the plain kind, which forgets the carry; `slip` is added to the tens."""
    (left_tens, left_ones), (right_tens, right_ones) = divmod(problem.left, 10), divmod(problem.right, 10)
    ones, tens = (left_ones + right_ones) % 10, left_tens + right_tens + slip
    reasoning = (
        f"simply, {WORDS[left_ones]} plus {WORDS[right_ones]} ends in {WORDS[ones]}. "
        f"{WORDS[left_tens]} plus {WORDS[right_tens]} is {WORDS[tens]}."
    )
    return reasoning, f"{tens}{ones}"


def completion(reasoning: str, answer: str) -> str:
    """The text the model writes: the reasoning, then the answer between its tags."""
    return f"{reasoning} <answer> {answer} </answer>"


def demonstration(problem: Problem, rng: random.Random) -> str:
    """One completion of the supervised corpus, with a random kind and random slips at the fractions above."""
    carry_kind = rng.random() < CARRY_KIND_SHARE + CARRY_KIND_SHARE_PER_TEN * (problem.left // 10)
    slips = rng.random() < (CARRY_KIND_SLIPS if carry_kind else PLAIN_KIND_SLIPS)
    # No word is above nineteen.
    slip = rng.choice((-1, 1)) if slips else 0
    if slip == 1 and problem.left // 10 + problem.right // 10 + problem.carry >= 19:
        slip = -1
    return completion(*(carry_working if carry_kind else plain_working)(problem, slip))


def split_problems(seed: int) -> tuple[list[Problem], list[Problem]]:
    """All (train, validation) problems, shuffled; no unordered pair of operands is on both sides."""
    rng = random.Random(seed)
    pairs = [(left, right) for left in range(10, 100) for right in range(left, 100)]
    rng.shuffle(pairs)
    # one validation problem per pair, with its operands in random order; train gets both orders of all other pairs
    validation = [Problem(*rng.sample(pair, 2)) for pair in pairs[:VALIDATION_ROWS]]
    train = [Problem(*order) for pair in pairs[VALIDATION_ROWS:] for order in sorted({pair, pair[::-1]})]
    rng.shuffle(train)
    return train, validation


def row(problem: Problem) -> dict[str, Any]:
    """One line of a data file: the prompt, and what graders see as `item`."""
    reasoning, answer = carry_working(problem)
    return {
        "messages": [{"role": "user", "content": problem.prompt}],
        "answer": answer,
        "reasoning": reasoning,
        "carry": problem.carry,
    }


def write_rows(path: Path, problems: Iterable[Problem]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row(problem)) + "\n" for problem in problems))


def write_data(folder: Path, seed: int) -> list[Problem]:
    """Writes both data files; returns the train problems, of which train.jsonl holds the first `TRAIN_ROWS`."""
    train, validation = split_problems(seed)
    write_rows(folder / "train.jsonl", train[:TRAIN_ROWS])
    write_rows(folder / "validation.jsonl", validation)
    return train
