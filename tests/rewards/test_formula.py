"""Formulas: arithmetic as it is written, bounded whatever is written, and nothing that could execute."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_rewards.graders.formula import MAX_CHARACTERS, MAX_DEPTH, Formula, FormulaError, NotComputable

NAMES = {"a": 3.0, "b": 1.0, "größe": 2.0}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("a", 3.0),
        ("0.5 * a + 0.25 * (b - 1) / 7", 1.5),
        ("a^2 + b", 10.0),
        ("2^3^2", 512.0),
        ("-a^2", -9.0),
        ("2^-1", 0.5),
        ("a\n  + b", 4.0),
        ("größe / 4", 0.5),
        ("min(a, b, 5) + max(a, b) + abs(-2) + min(7)", 13.0),
        ("floor(2.5) + ceil(2.5) + floor(-0.5)", 4.0),
        ("exp(0) + sqrt(9) + log(1)", 4.0),
    ],
)
def test_values(source: str, value: float) -> None:
    assert Formula.parse(source, NAMES).value(NAMES) == value


def test_only_the_names_that_are_read_are_wanted() -> None:
    formula = Formula.parse("a + 0 * a", NAMES)
    assert formula.names == {"a"}
    assert formula.value({"a": 1.0}) == 1.0


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("9^9^9^(9 * b)", "range"),
        ("exp(1000 * b)", "range"),
        ("1e308 * b * 10 - 1e308 * b * 10", "not a finite number"),
        (
            "1 / (1e308 * (10 * b))",
            "'1e308 \\* \\(10 \\* b\\)', of 1e\\+308, 10",
        ),  # where it arises, before it becomes 0
        ("a / (b - 1)", "division by zero"),
        ("(b - 9)^0.5", "domain"),
        ("(b - 1)^(b - 2)", "domain"),
        ("sqrt(0 - a)", "domain"),
        ("log(b - 1)", "domain"),
    ],
)
def test_what_has_no_finite_value_says_where(source: str, reason: str) -> None:
    formula = Formula.parse(source, NAMES)
    start = time.monotonic()
    with pytest.raises(NotComputable, match=reason):
        formula.value(NAMES)
    assert time.monotonic() - start < 1.0


HOSTILE = [
    "__import__('os').system('true')",
    "a.__class__",
    "a[0]",
    "(lambda: 1)()",
    "[x for x in (a, b)]",
    "(x := a)",
    "a if b else 1",
    "a < b",
    "a and b",
    "not a",
    "~a",
    "a // b",
    "a % b",
    "a @ b",
    "'a'",
    "f'{a}'",
    "True",
    "None",
    "1j",
    "...",
    "a, b",
    "min(*a)",
    "min(a, key=abs)",
    "min",
    "eval(a)",
    "pow(a, b)",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_nothing_but_arithmetic_is_taken(source: str) -> None:
    with pytest.raises(FormulaError):
        Formula.parse(source, NAMES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a + c", "no grader 'c' here; the formula can name a, b, größe"),
        ("a ** 2", "written '\\^'"),
        ("a^^2", "'a\\^\\^2' is not a formula"),
        ("", "is not a formula"),
        ("a\0", "null bytes"),
        ("\ud800", "is not a formula"),
        ("min()", "at least one argument"),
        ("abs(a, b)", "abs takes one argument, not 2"),
        ("a.real + b", "'a.real' cannot stand in a formula"),
        ("größe + a.real", "'a.real' cannot"),
        ("1e999", "beyond a double"),
        ("a / 0", "'a / 0': division by zero, whatever the graders' values are"),
        ("a + 0 * (b / (2 - 2))", "'b / \\(2 - 2\\)': division by zero"),
        ("1 / 0", "'1 / 0', of 1, 0: float division by zero, whatever"),
        ("9^9^9^9", "range"),
        ("min(a, exp(1000))", "range"),
        ("a + (1e308 * 10 - 1e308 * 10)", "not a finite number"),
        ("1 / (1e308 * 10)", "'1e308 \\* 10', of 1e\\+308, 10"),  # found where it arises, before it becomes 0
        ("(0 - 8)^0.5", "domain"),
        ("0^(0-1)", "domain"),
        ("log(0)", "domain"),
        ("sqrt(-1)", "domain"),
        ("9" * 900, "beyond a double"),
        ("1" * (MAX_CHARACTERS + 1), f"at most {MAX_CHARACTERS} characters"),
        ("-" * (MAX_DEPTH + 1) + "a", f"nested at most {MAX_DEPTH} deep"),
        ("(" * 300 + "a" + ")" * 300, "is not a formula"),
        ("not " * 200 + "a", "…' cannot stand"),
    ],
)
def test_a_wrong_formula_says_what(source: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        Formula.parse(source, NAMES)


def test_the_longest_and_deepest_formulas_are_computed() -> None:
    assert Formula.parse("-" * (MAX_DEPTH - 1) + "a", NAMES).value(NAMES) == -3.0
    assert Formula.parse("max(" + "1," * (MAX_CHARACTERS // 2 - 3) + "a)", NAMES).value(NAMES) == 3.0


PIECES = [
    "a",
    "b",
    "größe",
    "1",
    "0",
    "2.5",
    "1e308",
    "9^9",
    "+",
    "-",
    "*",
    "/",
    "^",
    "(",
    ")",
    ",",
    "min(",
    "log(",
    " ",
]
ODD = ["\n", ".", "'", "[", "]", "{", "}", ":", "=", "_", "\\", "lambda", "if", "or ", "0x", "1j", "\0"]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES + ODD), max_size=30).map("".join))
def test_whatever_is_written_has_a_value_or_a_named_error(source: str) -> None:
    try:
        value = Formula.parse(source, NAMES).value(NAMES)
    except (FormulaError, NotComputable):
        return
    assert value is not None
    assert math.isfinite(value)


SLOPES = {
    **{"0.7*a+0.3*b": True, "a*b/c - 2": True, "-(a+b)*c": True, "a^1": True, "max(a)": True, "a*0+b": True, "b": True},
    **{"min(a, 0.5)": False, "min(b, a, 0.2)": False, "a^2": False, "a*a": False, "b/a": False, "c^a": False},
    **{"a^a": False, "a^0.5": False, "sqrt(a)+log(a)*exp(a)": False, "abs(a-b)": False, "floor(a)": False},
}


@pytest.mark.parametrize("source", SLOPES)
def test_a_slope_is_that_of_differences(source: str) -> None:
    values, step = {"a": 0.3, "b": 0.7, "c": 2.0}, 1e-6
    formula = Formula.parse(source, values)
    up, down = (formula.value(values | {"a": 0.3 + sign * step}) for sign in (1, -1))
    assert up is not None
    assert down is not None
    slope, affine = formula.slope(values, "a")
    assert slope == pytest.approx((up - down) / (2 * step), abs=1e-6)
    assert affine == SLOPES[source]


def test_what_does_not_count_has_no_slope_and_neither_has_a_root_at_zero() -> None:
    assert Formula.parse("a*d + b + d", ["a", "b", "d"]).slope({"a": 0.3, "b": 1.0}, "a") == (0.0, True)
    assert Formula.parse("sqrt(a) + a^0.5", ["a"]).slope({"a": 0.0}, "a") == (0.0, False)
