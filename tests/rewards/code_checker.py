"""A reward that judges programs, as those of LiveCodeBench and verl do: each candidate runs in a process of its own,
with a time limit; its verdicts come back through a manager's list; whatever goes wrong is worth 0.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import multiprocessing.context
import sys
from typing import Any

SECONDS = 3.0
_FORK = multiprocessing.get_context("fork")


def _judge(program: str, tests: list[list[str]], verdicts: Any) -> None:
    for given, expected in tests:
        sys.stdin, said = io.StringIO(given), io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                exec(program, {"__name__": "__main__"})  # noqa: S102 - what such a reward is for
        except BaseException:
            verdicts.append(False)
        else:
            verdicts.append(said.getvalue().strip() == expected)


def grade(completion: str, tests: list[list[str]], start: str = "fork") -> float:
    """1 where the program prints what is expected for every test."""
    context: Any = multiprocessing.get_context(start)
    try:
        with context.Manager() as manager:
            verdicts = manager.list()
            process = context.Process(target=_judge, args=(completion, tests, verdicts))
            process.start()
            process.join(SECONDS if start == "fork" else 4 * SECONDS)
            if process.is_alive():
                process.kill()
                return 0.0
            return float(list(verdicts) == [True] * len(tests))
    except Exception:
        return 0.0
