"""Numbers in messages: short whatever the number is, and never zeros alone for one that is not 0."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_core.number_text import decimal


@pytest.mark.parametrize(
    ("number", "places", "text"),
    [
        (None, 3, "none"),
        (0.0, 3, "0.000"),
        (0.5, 3, "0.500"),
        (-0.125, 2, "-0.12"),
        (0.0005, 3, "0.001"),
        (999_999.0, 2, "999999.00"),
        (1e6, 2, "1.00e+06"),
        (0.0004, 3, "4.00e-04"),
        (-2e-9, 2, "-2.00e-09"),
        (1e308, 3, "1.00e+308"),
    ],
)
def test_a_number_with_its_places(number: float | None, places: int, text: str) -> None:
    assert decimal(number, places) == text


@settings(deadline=None, derandomize=True)
@given(st.floats(-1e308, 1e308), st.integers(1, 4))  # beyond, three digits round to what is no float
def test_any_number_is_short_and_near_what_it_was(number: float, places: int) -> None:
    text = decimal(number, places)
    assert len(text) <= 12
    assert math.isclose(float(text), number, rel_tol=0.005, abs_tol=0.51 * 10**-places)
    assert (float(text) == 0) == (number == 0)
