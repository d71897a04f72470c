"""Training and validation rows of the real example.

Invariants: a problem is in exactly one row of one file; same seed and same reasoning-gym, same bytes; a row holds what
the verifier needs (`answer`) beside its messages.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from sums import questions

VALIDATION_ROWS = 40
SYSTEM = "Calculate."
"""Without one, the chat template puts a longer one in; every token of a prompt is paid for in each training step."""


def split(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All (training, validation) rows, in a random order."""
    rows = [_row(question, answer) for question, answer in questions(seed).items()]
    random.Random(seed).shuffle(rows)
    return rows[VALIDATION_ROWS:], rows[:VALIDATION_ROWS]


def write(folder: Path, seed: int) -> tuple[Path, Path]:
    """Both files, as JSONL: (training, validation)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "validation.jsonl"
    for path, rows in zip(paths, split(seed), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def _row(question: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"messages": messages, "answer": answer}
