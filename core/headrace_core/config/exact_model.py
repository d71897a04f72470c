"""The base of everything that a user writes as JSON or TOML: a value has the type that its field names.

Pydantic alone would take `true` for 1, so that a learning rate of `true` trains at 1, and the text "60" for 60.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationInfo, field_validator

_NAMES: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
_COERCED = frozenset({bool, int, float})
"""Types that Pydantic makes of values of another type."""


class ExactModel(BaseModel):
    """Refuses truth values and texts in place of numbers, and numbers and texts in place of truth values, also within
    lists and objects. A whole number may be written as `60.0`: JSON has one type of number only."""

    @field_validator("*", mode="before")
    @classmethod
    def _has_the_named_type(cls, value: Any, info: ValidationInfo) -> Any:
        _check(value, _types(cls.model_fields[str(info.field_name)].annotation))
        return value


def _check(value: Any, types: frozenset[type]) -> None:
    """Raises ValueError if `value`, or one within it, is of none of the `types`, and might be coerced."""
    if isinstance(value, list | tuple):
        for entry in value:
            _check(entry, types)
    elif isinstance(value, dict) and dict in types:  # an object that is a model checks its own fields
        for entry in value.values():
            _check(entry, types)
    elif (given := type(value)) in _NAMES and given not in types and types & _COERCED:
        if given in (int, float) and types & {int, float}:
            return
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        wanted = " or ".join(name for kind, name in _NAMES.items() if kind in types)
        raise ValueError(f"{shown:.100} is no value of it: write {wanted}")


def _types(annotation: Any) -> frozenset[type]:
    """The types of values that an annotation allows, with those in its lists and objects; `dict` for an object."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return frozenset({*_NAMES, dict})
    if origin is Literal:
        return frozenset(map(type, arguments))
    if origin is Annotated:
        return _types(arguments[0])
    if arguments:
        inner = frozenset[type]().union(*map(_types, arguments[1:] if origin is dict else arguments))
        return inner | {dict} if origin is dict else inner
    return frozenset({annotation} if annotation in _NAMES else ())
