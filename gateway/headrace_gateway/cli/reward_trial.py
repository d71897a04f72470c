"""What `headrace rewards check` asks a grader, and what its answers add up to.

A completion of each row: a value of the row, or a line of another file; a list of texts is a group, scored together.
After them an empty completion of the first row, since a model writes one sooner or later: it is told apart.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from headrace_core.errors import InvalidData
from headrace_core.protocols.grader_check import CheckReport, Failure, NotApplicable, Score
from headrace_core.storage.dataset import Row, read_rows

from ..grading.plausible_completions import sample

Entry = TypeVar("Entry")

USUAL_KEYS = ("completion", "response", "answer")


@dataclass(frozen=True, slots=True)
class Trial:
    """The rows to be tried, and the completions of each; none is without any."""

    rows: list[Row]
    completions: list[list[str]]
    source: str
    """Where the completions come from, for the user."""

    @property
    def samples(self) -> list[dict[str, Any]]:
        """As the rewards service takes them; the last one is the empty completion."""
        groups = zip((*self.rows, self.rows[0]), (*self.completions, [""]), strict=True)
        return [sample(row, text) for row, texts in groups for text in texts]

    @property
    def groups(self) -> list[int]:
        """How many neighbours among `samples` belong to one row."""
        return [*map(len, self.completions), 1]


@dataclass(frozen=True, slots=True)
class Summary:
    """What the verdict on a trial adds up to; the empty completion counts in `failed` alone."""

    completions: int
    scores: list[float]
    not_applicable: int
    kinds: dict[str, int]
    """Failures, by kind."""
    seconds: list[float]
    """Of each row."""
    failed: list[Failure]
    """The first failure of each kind."""

    @property
    def mean(self) -> float:
        """Of the scores; NaN where there is none."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def deviation(self) -> float:
        """Of the scores around their mean."""
        return statistics.pstdev(self.scores) if self.scores else math.nan

    def share(self, count: int) -> float:
        """The share of the completions."""
        return count / self.completions

    def quantile(self, part: float) -> float:
        """Seconds in which `part` of the rows were scored (nearest rank)."""
        return sorted(self.seconds)[math.ceil(part * len(self.seconds)) - 1]


def read(data: Path, completions: str | None, limit: int) -> Trial:
    """The first `limit` rows of a data file with their completions; `completions` is a key of the rows, or a file.

    Raises `InvalidData`, naming what to change.
    """
    rows = _opened(data, read_rows)[:limit]
    keys = [key for key in rows[0].item if key != "messages" and all(key in row.item for row in rows)]
    key = completions or next((key for key in USUAL_KEYS if key in keys), None)
    if key in keys:
        source, values = f"the rows' key '{key}'", [row.item[key] for row in rows]
    elif completions is None:
        usual = ", ".join(USUAL_KEYS)
        raise InvalidData(
            f"{data}: not every row has one of {usual}: name a key of the rows, or a file, by --completions"
        )
    elif Path(completions).is_file():
        source, values = completions, _opened(Path(completions), _lines)[:limit]
        if len(values) < len(rows):
            raise InvalidData(f"{completions} has {len(values)} completions, and {data} {len(rows)} rows")
    else:
        raise InvalidData(
            f"'{completions}' is neither a file nor a key of every row; those are {', '.join(keys) or 'none'}"
        )
    texts = [_texts(value, f"{source}, row {n}") for n, value in enumerate(values, start=1)]
    return Trial(rows, texts, source)


def summary(verdict: CheckReport) -> Summary:
    """The figures of a verdict on the samples of a trial."""
    tried = verdict.outcomes[:-1]
    failed = {outcome.kind: outcome for outcome in reversed(verdict.outcomes) if isinstance(outcome, Failure)}
    return Summary(
        completions=len(tried),
        scores=[outcome.value for outcome in tried if isinstance(outcome, Score)],
        not_applicable=sum(isinstance(outcome, NotApplicable) for outcome in tried),
        kinds=dict(Counter(outcome.kind for outcome in tried if isinstance(outcome, Failure)).most_common()),
        seconds=verdict.seconds[:-1],
        failed=list(failed.values()),
    )


def _opened(path: Path, reader: Callable[[Path], list[Entry]]) -> list[Entry]:
    try:
        return reader(path)
    except OSError as error:
        raise InvalidData(f"{path}: {error.strerror}") from error


def _lines(path: Path) -> list[Any]:
    values = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            values += [msgspec.json.decode(line)] if line.strip() else []
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidData(f"{path}, line {number}: not JSON: {error}") from error
    return values


def _texts(value: Any, where: str) -> list[str]:
    texts: Sequence[Any] = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str | int | float) for text in texts):
        raise InvalidData(f"{where}: a completion is a text, or a list of texts")
    return [text if isinstance(text, str) else msgspec.json.encode(text).decode() for text in texts]
