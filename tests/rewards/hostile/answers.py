"""Acts that return what is no score."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any


def nan(item: Any) -> float:
    return math.nan


def infinity(item: Any) -> float:
    return -math.inf


def text(item: Any) -> str:
    return "1.0"


def long_text(item: Any) -> str:
    return "x" * (50 << 20)


def large_integer(item: Any) -> int:
    return 10**400


def generator(item: Any) -> Iterator[float]:
    yield 1.0


def a_class(item: Any) -> Any:
    return float


def empty(item: Any) -> dict[str, float]:
    return {}


def many_components(item: Any) -> dict[str, float]:
    return {f"component {number}": 1.0 for number in range(60_000)}


class RaisingFloat:
    def __float__(self) -> float:
        raise ZeroDivisionError("no number for you")


def raising_float(item: Any) -> Any:
    return RaisingFloat()


class HangingFloat:
    def __float__(self) -> float:
        time.sleep(60)
        return 1.0


def hanging_float(item: Any) -> Any:
    return HangingFloat()


class TextFloat:
    def __float__(self) -> Any:
        return "1.0"


def float_of_another_type(item: Any) -> Any:
    return TextFloat()


class RaisingRepr:
    def __repr__(self) -> str:
        raise ZeroDivisionError("no text for you")


def raising_repr(item: Any) -> Any:
    return RaisingRepr()


class Liar(float):
    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    def __hash__(self) -> int:
        raise ZeroDivisionError

    def __float__(self) -> float:
        return math.nan


def raising_equality(item: Any) -> float:
    return Liar(1.0)


class Endless(Mapping[str, float]):
    def __getitem__(self, key: str) -> float:
        return 1.0

    def __iter__(self) -> Iterator[str]:
        while True:
            yield "again"

    def __len__(self) -> int:
        return 1


def endless_mapping(item: Any) -> Any:
    return Endless()
