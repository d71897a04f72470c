"""The verdict of a task's own verifier on one answer."""

from __future__ import annotations

from typing import Any

from ..tasks.gym_dataset import scorer


def judge(given: str | None, task: str, question: str, answer: str | None, metadata: dict[str, Any]) -> float:
    """From 0 to 1; raises `InvalidRequest` for an unknown task."""
    return scorer(task)(given, {"question": question, "answer": answer, "metadata": metadata})
