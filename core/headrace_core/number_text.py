"""Numbers as messages show them."""

from __future__ import annotations

_MOST_DIGITS = 1e6
"""Numbers from here on are written with an exponent."""


def decimal(number: float | None, places: int) -> str:
    """The number with so many decimal places: `0.500`. With an exponent where that would be a long row of digits, or
    nothing but zeros for a number that is not 0: `1.23e+09`, `4.00e-05`. "none" where there is no number."""
    if number is None:
        return "none"
    if number and not 0.5 * 10**-places <= abs(number) < _MOST_DIGITS:
        return f"{number:.2e}"
    return f"{number:.{places}f}"
