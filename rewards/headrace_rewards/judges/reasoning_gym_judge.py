"""Judges one answer by the verifier of its reasoning-gym task."""

from __future__ import annotations

from typing import Any

from ..tasks.gym_dataset import scorer


def judge(given: str | None, task: str, question: str, answer: str | None, metadata: dict[str, Any]) -> float:
    """A score from 0 to 1. Raises `InvalidRequest` for an unknown task."""
    return scorer(task)(given, {"question": question, "answer": answer, "metadata": metadata})
