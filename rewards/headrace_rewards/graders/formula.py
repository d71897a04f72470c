"""Formulas such as `0.8 * exact + 0.2 * min(style, 1)`: parsed to a tree of allowed nodes, and evaluated without
`eval`.

    expression   a number · a name · (expression) · -x · x + y · x - y · x * y · x / y · x ^ y
                 min(x, …) max(x, …) abs(x) floor(x) ceil(x) exp(x) sqrt(x) log(x)

`^` is the power: it binds more tightly than `*` and a sign, and is right-associative. Every number is a double, so that
a result has a bounded size whatever the exponents are (`9^9^9` raises an overflow). A formula has at most
`MAX_CHARACTERS`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_CHARACTERS = 1_000
MAX_DEPTH = 100

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # unlike `**` it never makes a complex number or a long integer
}
_SIGNS: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_OF_MANY: dict[str, Callable[..., float]] = {
    "min": lambda *numbers: min(numbers),
    "max": lambda *numbers: max(numbers),
}
_OF_ONE: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
FUNCTIONS = {**_OF_MANY, **_OF_ONE}
_DERIVATIVES: dict[str, Callable[[float], float]] = {
    "abs": lambda x: math.copysign(1.0, x),
    "floor": lambda x: 0.0,
    "ceil": lambda x: 0.0,
    "exp": math.exp,
    "sqrt": lambda x: 0.5 / math.sqrt(x),
    "log": lambda x: 1 / x,
}


class _Part(NamedTuple):
    """The value of a node of a formula."""

    result: float | None
    """None if a value that the node needs is missing."""
    follows: bool
    """Whether the result depends on at least one grader's value, rather than on constants alone."""
    lacks: bool = False
    """For a sum: whether one of its terms is missing."""

    @property
    def operand(self) -> float | None:
        """The result as an operand of anything but a sum. None for a sum of which only constants are left: without `b`,
        the 1 of `b + 1` has no meaning."""
        return None if self.lacks and not self.follows else self.result


class FormulaError(ValueError):
    """The formula is invalid, whatever the values; the message says which piece is wrong."""


class NotComputable(ArithmeticError):
    """These values have no finite result: a division by zero, an overflow, the root or logarithm of a wrong number."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula. `names`: the graders that it uses."""

    names: frozenset[str]
    _text: str
    """The formula in Python's syntax: `**` for `^`."""
    _tree: ast.expr

    @classmethod
    def parse(cls, source: str, known: Collection[str]) -> Formula:
        """Raises `FormulaError` if the text is not a valid formula over the names in `known`."""
        if len(source) > MAX_CHARACTERS:
            raise FormulaError(f"a formula has at most {MAX_CHARACTERS} characters, not {len(source)}")
        if "**" in source:
            raise FormulaError("the power is written '^'")
        text = " ".join(source.split()).replace("^", "**")
        try:
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
            reason = fault.msg if isinstance(fault, SyntaxError) else str(fault)
            raise FormulaError(f"{source!r} is not a formula: {reason}") from None
        names: set[str] = set()
        _Check(text, frozenset(known), names).check(tree, MAX_DEPTH)
        formula = cls(frozenset(names), text, tree)
        formula._check_constants()
        return formula

    def value(self, values: Mapping[str, float]) -> float | None:
        """The result, finite; raises `NotComputable`.

        A name without a value is left out, with its term of a sum, and of `min` and `max`. Constants alone are no
        result if the names beside them have no value: without `b`, `b + 1` and `min(b, 1)` are missing too, also within
        a larger formula. `None` if no value is left that the result could depend on.
        """
        part = self._evaluate(self._tree, values)
        return part.result if part.follows or not self.names else None

    def slope(self, values: Mapping[str, float], name: str) -> tuple[float, bool]:
        """(∂ result / ∂ `name` at `values`, whether the result is affine in `name`: the same derivative everywhere).

        The derivative is 0 where it is not finite. Raises `NotComputable` like `value`.
        """
        derivative, affine = self._slope(self._tree, values, name)
        return (derivative, affine) if math.isfinite(derivative) else (0.0, False)

    def _check_constants(self) -> None:
        """Raises `FormulaError` for a piece that is never computable: `log(0)`, or a division by a constant 0."""
        for node in ast.walk(self._tree):
            try:
                if isinstance(node, ast.expr) and not self._names_in(node):
                    self._evaluate(node, {})
                match node:
                    case ast.BinOp(op=ast.Div(), right=right) if not self._names_in(right):
                        if self._evaluate(right, {}).result == 0:
                            raise NotComputable(f"'{_shown(self._text, node)}': division by zero")
            except NotComputable as fault:
                raise FormulaError(f"{fault}, whatever the graders' values are") from None

    def _names_in(self, node: ast.expr) -> set[str]:
        return {piece.id for piece in ast.walk(node) if isinstance(piece, ast.Name)} & self.names

    def _slope(self, node: ast.expr, values: Mapping[str, float], name: str) -> tuple[float, bool]:
        if not _reads(node, name) or self._evaluate(node, values).result is None:
            return 0.0, True
        match node:
            case ast.Name():
                return 1.0, True
            case ast.UnaryOp(op=sign, operand=operand):
                inner, affine = self._slope(operand, values, name)
                return _SIGNS[type(sign)](inner), affine
            case ast.BinOp(op=op, left=left, right=right):
                return self._slope_of_two(op, left, right, values, name)
            case ast.Call(func=ast.Name(id=function), args=arguments):
                return self._slope_of_call(function, arguments, values, name)
        raise AssertionError(f"a piece that the check does not let pass: {ast.dump(node)}")

    def _slope_of_two(
        self, op: ast.operator, left: ast.expr, right: ast.expr, values: Mapping[str, float], name: str
    ) -> tuple[float, bool]:
        (of_left, left_affine), (of_right, right_affine) = (self._slope(n, values, name) for n in (left, right))
        a, b = (self._evaluate(n, values).result or 0.0 for n in (left, right))
        affine, one_side = left_affine and right_affine, not (_reads(left, name) and _reads(right, name))
        match op:
            case ast.Add():
                return of_left + of_right, affine
            case ast.Sub():
                return of_left - of_right, affine
            case ast.Mult():
                return of_left * b + a * of_right, affine and one_side
            case ast.Div():
                return of_left / b - a * of_right / b**2, affine and not _reads(right, name)
        try:
            by_base = of_left * b * math.pow(a, b - 1) if of_left else 0.0
            by_exponent = of_right * math.pow(a, b) * math.log(a) if of_right else 0.0
        except (ArithmeticError, ValueError):  # at 0, where a root has no finite derivative
            return 0.0, False
        return by_base + by_exponent, affine and b == 1 and not _reads(right, name)

    def _slope_of_call(
        self, function: str, arguments: Sequence[ast.expr], values: Mapping[str, float], name: str
    ) -> tuple[float, bool]:
        present = [(value, n) for n in arguments if (value := self._evaluate(n, values).operand) is not None]
        if function in _OF_MANY:
            chosen = _OF_MANY[function](*(value for value, _ in present))
            of_chosen, affine = next(self._slope(n, values, name) for value, n in present if value == chosen)
            return of_chosen, affine and len(present) == 1
        ((x, argument),) = present
        inner, _ = self._slope(argument, values, name)
        outer = _DERIVATIVES[function](x) if x or function not in ("sqrt", "log") else 0.0
        return inner * outer, False

    def _evaluate(self, node: ast.expr, values: Mapping[str, float]) -> _Part:
        match node:
            case ast.Constant(value=int() | float() as number):
                return _Part(float(number), False)
            case ast.Name(id=name):
                return _Part(values.get(name), name in values)
            case ast.UnaryOp(op=sign, operand=operand):
                part = self._evaluate(operand, values)
                return part if part.result is None else part._replace(result=_SIGNS[type(sign)](part.result))
            case ast.BinOp(op=ast.Add() | ast.Sub() as op, left=left, right=right):
                return self._sum(node, op, self._evaluate(left, values), self._evaluate(right, values))
            case ast.BinOp(op=op, left=left, right=right):
                return self._of_all(
                    node, _OPERATORS[type(op)], [self._evaluate(side, values) for side in (left, right)]
                )
            case ast.Call(func=ast.Name(id=name), args=arguments):
                parts = [self._evaluate(argument, values) for argument in arguments]
                return self._of_all(node, FUNCTIONS[name], _present(parts) if name in _OF_MANY else parts)
        raise AssertionError(f"a piece that the check does not let pass: {ast.dump(node)}")

    def _sum(self, node: ast.expr, op: ast.operator, left: _Part, right: _Part) -> _Part:
        """The sum or difference of the operands that are present; a missing operand counts as 0."""
        if left.result is None and right.result is None:
            return _Part(None, False)
        result = self._apply(node, _OPERATORS[type(op)], [left.result or 0.0, right.result or 0.0])
        lacks = left.lacks or right.lacks or left.result is None or right.result is None
        return _Part(result, left.follows or right.follows, lacks)

    def _of_all(self, node: ast.expr, function: Callable[..., float], parts: Sequence[_Part]) -> _Part:
        """The result of an operation that needs all of its operands."""
        operands = [operand for part in parts if (operand := part.operand) is not None]
        if len(operands) < len(parts):
            return _Part(None, False)
        return _Part(self._apply(node, function, operands), any(part.follows for part in parts))

    def _apply(self, node: ast.expr, function: Callable[..., float], operands: Sequence[float]) -> float:
        try:
            result = float(function(*operands))
            reason = "not a finite number"
        except (ArithmeticError, ValueError) as fault:  # 1 / 0, exp(1000), sqrt(-1)
            result, reason = math.nan, str(fault)
        if not math.isfinite(result):
            given = ", ".join(f"{operand:g}" for operand in operands)
            raise NotComputable(f"'{_shown(self._text, node)}', of {given}: {reason}")
        return result


@dataclass(frozen=True, slots=True)
class _Check:
    """Rejects every node that the evaluation does not support; collects the names that are used in `names`."""

    text: str
    known: frozenset[str]
    names: set[str]

    def check(self, node: ast.expr, depth: int) -> None:
        if depth == 0:
            raise FormulaError(f"a formula is nested at most {MAX_DEPTH} deep")
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                self._check_number(number)
                inner: list[ast.expr] = []
            case ast.Name(id=name):
                if name not in self.known:
                    known = ", ".join(sorted(self.known))
                    raise FormulaError(f"there is no grader {name!r} here; the formula can name {known}")
                self.names.add(name)
                inner = []
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
                inner = [operand]
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
                inner = [left, right]
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
                if not arguments or (name in _OF_ONE and len(arguments) != 1):
                    wanted = "one argument" if name in _OF_ONE else "at least one argument"
                    raise FormulaError(f"{name} takes {wanted}, not {len(arguments)}")
                inner = arguments
            case _:
                raise FormulaError(
                    f"'{_shown(self.text, node)}' cannot stand in a formula; it is made of numbers, names of graders, "
                    f"+ - * / ^, parentheses and {', '.join(FUNCTIONS)}"
                )
        for piece in inner:
            self.check(piece, depth - 1)

    @staticmethod
    def _check_number(number: float) -> None:
        try:
            finite = math.isfinite(number)
        except OverflowError:  # an integer beyond a double
            finite = False
        if not finite:
            raise FormulaError("a number in the formula is beyond a double")


def _present(parts: Sequence[_Part]) -> Sequence[_Part]:
    """The operands that `min` and `max` compare: those that are present if one of them depends on a value; else all, so
    that a missing one makes the result missing."""
    present = [part for part in parts if part.operand is not None]
    return present if any(part.follows for part in present) else parts


def _reads(node: ast.expr, name: str) -> bool:
    return any(isinstance(piece, ast.Name) and piece.id == name for piece in ast.walk(node))


def _shown(text: str, node: ast.expr) -> str:
    piece = text.encode()[node.col_offset : node.end_col_offset].decode()  # offsets are in bytes
    return (piece if len(piece) <= 80 else f"{piece[:80]}…").replace("**", "^")
