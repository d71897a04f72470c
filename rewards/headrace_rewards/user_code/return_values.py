"""Converts what a user's function returned into outcomes. An endpoint's rewards follow the same rules.

    None                      not applicable
    a number (bool, numpy,    the score
      torch scalar, …)
    a dict of numbers         components; the score is the first of its keys `score`, `reward` and `overall` (EasyR1)
                              that is present, else the sum of all

and in the group form

    a list, or any iterable   any of the above for each sample, in order
    a dict with `rewards`     OpenRLHF's columns: `rewards` is the list of scores; `scores` and the entries of
                              `extra_logs` are components: a list has one for each sample, a number is for all

Beside a score, a dict may hold values that are no numbers (as verl's functions return): texts become notes, which are
shown with the completion, and others are dropped.

Anything else, and NaN, infinity or a number beyond ±`MAX_SCORE` anywhere, is `Failure("invalid_value")`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score, score_fault

from .notes import notes_of

TOTAL_KEYS = ("score", "reward", "overall")
COLUMN_KEY = "rewards"


class InvalidValue(ValueError):
    """The function returned something that is no score; the message says what and where."""


def to_outcome(value: Any, who: str = "the function") -> Outcome:
    """The outcome of one sample from the value returned for it. `who` returned it: for the message of a failure."""
    if value is None:
        return NotApplicable()
    try:
        if isinstance(value, Mapping):
            return _from_components(value, who)
        return Score(_number(value, f"{who} returned"))
    except InvalidValue as fault:
        return Failure("invalid_value", str(fault))


def to_outcomes(value: Any, count: int) -> list[Outcome]:
    """The outcomes of `count` samples from what a group function returned; `None` applies to all of them."""
    if value is None:
        return [NotApplicable()] * count
    try:
        rows = _rows(value, count) if isinstance(value, Mapping) else _column(value, count, "the function returned")
    except InvalidValue as fault:
        return [Failure("invalid_value", str(fault))] * count
    return [to_outcome(row) for row in rows]


def _rows(value: Mapping[Any, Any], count: int) -> list[Any]:
    """Convert OpenRLHF's columns into one return value for each sample."""
    if COLUMN_KEY not in value:
        raise InvalidValue(f"the function returned {_shown(value)} for {count} completions, which lacks '{COLUMN_KEY}'")
    rewards = _column(value[COLUMN_KEY], count, f"'{COLUMN_KEY}' is")
    logs = value.get("extra_logs")
    columns = {}
    for name, column in {"scores": value.get("scores"), **(logs if isinstance(logs, Mapping) else {})}.items():
        column = plain(column)
        if is_number(column):
            columns[str(name)] = [column] * count
        elif isinstance(column, list | tuple) and len(column) == count:
            columns[str(name)] = list(column)
    parts = [{name: column[index] for name, column in columns.items()} for index in range(count)]
    return [
        reward if reward is None or not part else {**part, "score": reward}
        for reward, part in zip(rewards, parts, strict=True)
    ]


def _column(value: Any, count: int, verb: str) -> list[Any]:
    """One entry per sample. Reads at most one entry too many, since an iterator may be endless."""
    value = plain(value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidValue(f"{verb} {_shown(value)} where a list of {count} was expected")
    entries = list(islice(value, count + 1))
    if len(entries) != count:
        length = len(value) if isinstance(value, list | tuple) else len(entries)
        raise InvalidValue(f"{verb} a list of {length} for {count} completions")
    return entries


def plain(value: Any) -> Any:
    """Convert arrays of numpy, torch or pandas to Python lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def _from_components(value: Mapping[Any, Any], who: str) -> Score:
    total_key = next((key for key in TOTAL_KEYS if key in value), None)
    components = {
        str(key): _number(entry, f"component '{key}' is")
        for key, entry in value.items()
        if total_key is None or key == total_key or is_number(entry)
    }
    if not components:
        raise InvalidValue(f"{who} returned an empty dict")
    total = sum(components.values()) if total_key is None else components[total_key]
    if (fault := score_fault(total)) is not None:
        raise InvalidValue(f"the sum of the components that {who} returned is {total}, {fault}")
    return Score(total, components, notes={} if total_key is None else notes_of(value))


def is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str)


def to_number(value: Any) -> float | None:
    """The value as a float; `None` if it is no number that a score may have."""
    try:
        return _number(value, "") if is_number(value) else None
    except InvalidValue:
        return None


def _number(value: Any, verb: str) -> float:
    if not is_number(value):
        raise InvalidValue(f"{verb} {_shown(value)} where a number was expected")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as fault:  # arrays, NaT, integers beyond a float
        raise InvalidValue(f"{verb} a {type(value).__name__} that is no float: {fault}") from None
    if (unfit := score_fault(number)) is not None:
        raise InvalidValue(f"{verb} {number}, {unfit}")
    return number


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:100]}{'…' if len(text) > 100 else ''} ({type(value).__name__})"
