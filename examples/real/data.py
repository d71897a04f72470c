"""Training and validation rows of the real example.

Invariants: a problem is in exactly one row of one file; the same seed and version of reasoning-gym give the same bytes;
a row holds its messages and what the verifier needs (`answer`).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from sums import questions

VALIDATION_ROWS = 40
SYSTEM = "Calculate."
"""System prompt. Without one, the chat template inserts a longer one, and every prompt token costs training time."""


def split(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All (training, validation) rows, in a random order."""
    rows = [_row(question, answer) for question, answer in questions(seed).items()]
    random.Random(seed).shuffle(rows)
    return rows[VALIDATION_ROWS:], rows[:VALIDATION_ROWS]


def write(folder: Path, seed: int) -> tuple[Path, Path]:
    """Write both files as JSONL; returns their paths, (training, validation)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "validation.jsonl"
    for path, rows in zip(paths, split(seed), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def _row(question: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"messages": messages, "answer": answer}
