"""Two stages against ANTLR's strong prediction alone."""

from __future__ import annotations

from typing import Any

import pytest
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy, latex2sympy

from headrace_rewards.judges import antlr_two_stage

FORMULAS = [
    r"42",
    r"-3.5",
    r"1,234",
    r"x+y",
    r"2x^2-3x+1",
    r"(x+1)(x-1)",
    r"\frac{1}{2}",
    r"\frac{a}{b+1}",
    r"\sqrt{2}+1",
    r"\sqrt[3]{x}",
    r"x=3",
    r"x=y=3",
    r"x<2",
    r"1<x\le5",
    r"\{1,2\}",
    r"(1,2)",
    r"[1,2)",
    r"(-\infty,3]",
    r"1,2",
    r"\pi",
    r"2^{10}\pi",
    r"|x|",
    r"|x|y",
    r"\sin(x)+1",
    r"\log_{2}8",
    r"\binom{5}{2}",
    r"5!",
    r"f(x)",
    r"a\pm{b}",
    r"i",
    r"\begin{pmatrix}1&2\end{pmatrix}",
    r"[1,2)\cup(3,4]",
    r"x\in[0,1]",
    r"50\%",
    r"\int_0^1{x}dx",
    r"\sum_{n=1}^{3}n",
    r"\text{even}",
    r"x_1+x_2",
    r"\frac{1}{",
    r"x++",
    r")",
    r"{}",
    r"^",
    r"\notacommand",
    r"x=1,y=2",
    r"x\ne1",
    r"90^\circ",
]


def read(formula: str) -> Any:
    try:
        return latex2sympy(formula, is_real=True, convert_degrees=False, normalization_config=None)
    except Exception as fault:  # of what is no formula
        return type(fault)


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_same_trees(formula: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Latex2Sympy, "parse", antlr_two_stage._parse)
    strong = read(formula)
    antlr_two_stage.install()
    assert (type(read(formula)), repr(read(formula))) == (type(strong), repr(strong))
