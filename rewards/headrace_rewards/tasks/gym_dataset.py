"""reasoning-gym's tasks: their rows, and the scores of answers. Imported only in sandboxed processes.

Invariant: a row can be stored as JSON: read back, it gives every answer the same score as before.
"""

from __future__ import annotations

import dataclasses
import difflib
import random
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from headrace_core.errors import InvalidRequest

from .answer_extraction import INSTRUCTIONS
from .task_reference import MAX_ROWS, TaskReference

with warnings.catch_warnings():
    # cellpylib, which one of the tasks needs, emits these when Python first compiles it.
    warnings.simplefilter("ignore", SyntaxWarning)
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as missing:
        raise InvalidRequest(
            f"reasoning-gym's tasks cannot be used here ({missing}): install a C compiler, then run `make setup` "
            "again, or `pip install 'headrace[tasks]'`"
        ) from missing

TASKS = sorted(set(DATASETS) - {"composite"})
"""All tasks but `composite`, whose parameters are other tasks: a reference's query cannot express them."""
_TUPLES = frozenset({"arc_agi", "rearc"})
"""Tasks whose verifiers compare with tuples, which JSON turns into lists."""
_CLOSE_NAMES = 5


def rows(reference: TaskReference) -> Iterator[dict[str, Any]]:
    """The rows of a training file, as `dataset_file` writes them; raises `InvalidRequest`."""
    dataset = _dataset(reference)
    instruction = INSTRUCTIONS[reference.answer]
    system = [] if reference.system is None else [{"role": "system", "content": reference.system}]
    for index in range(reference.size):
        entry = dataset[index]
        question = f"{entry['question']}\n\n{instruction}" if instruction else entry["question"]
        yield {
            "messages": [*system, {"role": "user", "content": question}],
            "task": reference.task,
            "question": entry["question"],
            "answer": entry["answer"],
            "metadata": entry["metadata"],
        }


@cache
def scorer(task: str) -> Callable[[str | None, dict[str, Any]], float]:
    """`score(answer, row)`, from 0 to 1, by the task's own verifier; raises `InvalidRequest` for an unknown task.

    If the verifier raises on an answer but not on the row's own answer, the answer is wrong and scores 0: some
    verifiers parse a model's text carelessly. If it raises on the row's own answer too, that error is raised.
    """
    _require_task(task)
    verify: Any = reasoning_gym.get_score_answer_fn(task)

    def score(answer: str | None, row: dict[str, Any]) -> float:
        metadata = _with_tuples(row["metadata"]) if task in _TUPLES else row["metadata"]
        entry = {"question": row["question"], "answer": row["answer"], "metadata": metadata}
        try:
            return float(verify(answer, entry))
        except Exception:
            verify(row["answer"], entry)
            return 0.0

    return score


def _dataset(reference: TaskReference) -> Any:
    _require_task(reference.task)
    fields = {field.name for field in dataclasses.fields(DATASETS[reference.task][1])} - {"size", "seed"}
    for name in reference.parameters:
        if name not in fields:
            raise InvalidRequest(f"{reference.task} has no parameter {name!r}; {_choice(name, sorted(fields))}")
    # reasoning-gym draws row i from seed + i: of neighbouring seeds, nearly all rows would be the same.
    seed = random.Random(reference.seed).randrange(2**32 - MAX_ROWS)
    try:
        return reasoning_gym.create_dataset(reference.task, size=reference.size, seed=seed, **reference.parameters)
    except Exception as fault:  # a task checks its parameters by assertions, or trips over them
        raise InvalidRequest(f"{reference.task} does not take these parameters: {_message(fault)}") from fault


def _require_task(task: str) -> None:
    if task not in TASKS:
        raise InvalidRequest(f"reasoning-gym has no task {task!r}; {_choice(task, TASKS)}")


def _choice(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, _CLOSE_NAMES, cutoff=0.5)
    return f"close to it: {', '.join(close)}" if close else f"there are: {', '.join(known)}"


def _message(fault: Exception) -> str:
    return str(fault) or type(fault).__name__


def _with_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_with_tuples(entry) for entry in value)
    return {k: _with_tuples(v) for k, v in value.items()} if isinstance(value, dict) else value
