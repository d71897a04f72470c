"""How what a user's function returned is read.

    None                      not applicable
    a number (bool, numpy,    the score
      torch scalar, …)
    a dict of numbers         components; its key `score`, else `reward`, is the score, else their sum
    a list (group form only)  any of the above for each sample, in order

Beside a `score` or `reward` a dict may hold values that are no numbers (verl's functions return such): left out.
Anything else, and NaN or an infinity anywhere, is `Failure("invalid_value")`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from headrace_rewards.protocol import Failure, NotApplicable, Outcome, Score

TOTAL_KEYS = ("score", "reward")


class InvalidValue(ValueError):
    """The message says what was returned where a finite number was expected."""


def to_outcome(value: Any) -> Outcome:
    """The outcome of one sample, from what the function returned for it."""
    if value is None:
        return NotApplicable()
    try:
        return _from_components(value) if isinstance(value, Mapping) else Score(_number(value, "the function returned"))
    except InvalidValue as fault:
        return Failure("invalid_value", str(fault))


def to_outcomes(value: Any, count: int) -> list[Outcome]:
    """The outcomes of `count` samples, from what a function in the group form returned; `None` is for all of them."""
    if value is None:
        return [NotApplicable()] * count
    if hasattr(value, "tolist"):  # numpy and torch arrays
        value = value.tolist()
    if not isinstance(value, list | tuple):
        fault = f"the function returned {_shown(value)} where a list of {count} was expected"
    elif len(value) != count:
        fault = f"the function returned a list of {len(value)} for {count} completions"
    else:
        return [to_outcome(entry) for entry in value]
    return [Failure("invalid_value", fault)] * count


def _from_components(value: Mapping[Any, Any]) -> Score:
    total_key = next((key for key in TOTAL_KEYS if key in value), None)
    components = {
        str(key): _number(entry, f"component '{key}' is")
        for key, entry in value.items()
        if total_key is None or key == total_key or _is_number(entry)
    }
    if not components:
        raise InvalidValue("the function returned an empty dict")
    total = sum(components.values()) if total_key is None else components[total_key]
    if not math.isfinite(total):
        raise InvalidValue("the sum of the function's components is not finite")
    return Score(total, components)


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str)


def _number(value: Any, verb: str) -> float:
    if not _is_number(value):
        raise InvalidValue(f"{verb} {_shown(value)} where a number was expected")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as fault:  # arrays, NaT, integers beyond a float
        raise InvalidValue(f"{verb} a {type(value).__name__} that is no float: {fault}") from None
    if not math.isfinite(number):
        raise InvalidValue(f"{verb} {number}, which is not a finite number")
    return number


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:100]}{'…' if len(text) > 100 else ''} ({type(value).__name__})"
