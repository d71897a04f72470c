"""Runs math-verify's LaTeX parser in two stages, as ANTLR recommends: it takes half the time, for the same parse trees.

Few inputs need ANTLR's full prediction mode (LL). The faster mode (SLL) makes the same decisions or ends in a syntax
error; only then the formula is parsed again in the full mode. See Parr, Harwell, Fisher: "Adaptive LL(*) Parsing"
(OOPSLA 2014), and ANTLR's documentation of `PredictionMode`.

latex2sympy2-extended, which math-verify pins at 1.11.0, has no setting for this, so its parser is patched here. Remove
this module when it has one.
"""

from __future__ import annotations

from typing import Any

from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

_parse = _Latex2Sympy.parse
_create_parser = _Latex2Sympy.create_parser


def install() -> None:
    """Patch the parser for the whole process."""
    _Latex2Sympy.parse = _in_two_stages


def _in_two_stages(self: Any, latex: str) -> Any:
    def weak(text: str) -> Any:
        parser = _create_parser(self, text)
        parser._interp.predictionMode = PredictionMode.SLL
        return parser

    self.create_parser = weak
    try:
        return _parse(self, latex)
    except Exception:  # whatever the error: the full prediction mode decides
        del self.create_parser
        return _parse(self, latex)
