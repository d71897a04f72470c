"""The judge's short cuts against math-verify itself."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from headrace_rewards.judges.math_verify_judge import boxed, core, judge

INTEGERS = st.integers(-(10**15) + 1, 10**15 - 1)
ANSWERS = st.sampled_from(
    [
        r"\frac{3}{4}",
        "0.75",
        "3/4",
        r"\sqrt{2}+1",
        "x^2+2x+1",
        "(x+1)^2",
        "(1,2)",
        "1,234",
        "x=3",
        "50",
        r"2\pi",
        r"\text{even}",
        r"\frac{1}{",
        "???",
        "{",
        "",
    ]
)
PROSE = st.sampled_from(
    [
        "we note that ",
        "the answer: 5 ",
        "answer is 7. ",
        "The final answer is ",
        "Final  Answer is 3 ",
        "$x = 3$ ",
        r"\[ f(1) = 20 \] ",
        "\n",
        " ",
        "$",
        "$$",
        r"\$",
        "[",
        "] ",
        r"\(",
        r"\) ",
        r"\[",
        "}",
        "{",
        "=",
        "9",
        "-",
        "%",
        "and ",
        ", ",
        "é",
        r"\boxed{",
        r"\boxed{8}",
        r"\boxed 4 ",
        r"\fbox{2} ",
        r"\frac{1}{2}",
    ]
)
ENDS = st.sampled_from(
    [
        r"\boxed{%s}",
        r"$\boxed{%s}$",
        r"$\boxed{%s}$.",
        r"\boxed{%s}.",
        r"$$\boxed{%s}$$",
        r"$\boxed{%s}",
        r"\boxed{%s}%%",
    ]
)
TEXTS = st.tuples(st.lists(PROSE, max_size=6).map("".join), ENDS, st.one_of(INTEGERS.map(str), ANSWERS)).map(
    lambda parts: parts[0] + parts[1] % parts[2]
)


def plainly(text: str, gold: str) -> float:
    """math-verify without short cuts."""
    return float(
        verify(parse(boxed(gold), parsing_timeout=None), parse(text, parsing_timeout=None), timeout_seconds=None)
    )


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, gold=st.sampled_from(["42", r"\frac{3}{4}", "x^2+2x+1", "3", r"\sqrt{2}+1", "50"]))
def test_a_text_is_judged_as_math_verify_judges_it(text: str, gold: str) -> None:
    assert judge([text], [gold]) == [plainly(text, gold)], text
    assert len(core(text)) <= len(text)


RATIONALS = st.one_of(
    INTEGERS.map(str),
    st.builds("{}/{}".format, st.integers(-20, 20), st.integers(1, 20)),
    st.builds(r"{}\frac{{{}}}{{{}}}".format, st.sampled_from(["", "-"]), st.integers(0, 20), st.integers(1, 20)),
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(answer=RATIONALS, gold=RATIONALS, shape=st.sampled_from(["{}", r"\boxed{{{}}}", r"so $\boxed{{{}}}$."]))
def test_rationals_are_compared_as_math_verify_compares_them(answer: str, gold: str, shape: str) -> None:
    text = shape.format(answer)
    for reference in (answer, gold):
        assert judge([text], [reference]) == [plainly(text, reference)]


EXPRESSIONS = st.sampled_from(
    [
        "9",
        "9%",
        "0.3333333",
        r"\frac{1}{3}",
        "10^{20}",
        "10^{20}+1",
        r"\sqrt{8}",
        r"2\sqrt{2}",
        "x^2+2x+1",
        "(x+1)^2",
        "y^2+2y+1",
        "x",
        r"\sqrt{x^2}",
        "|x|",
        r"\sin^2 x+\cos^2 x",
        "1",
        r"\infty",
        r"\frac{1}{0}",
        "i",
        "1+i",
        "f(x)",
        "x<2",
        r"\{1,2\}",
        r"\begin{pmatrix}1 & 2\end{pmatrix}",
        "5!",
        "120",
    ]
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(answer=EXPRESSIONS, gold=EXPRESSIONS)
def test_expressions_that_differ_at_a_point_are_not_equal_to_math_verify(answer: str, gold: str) -> None:
    text = rf"\boxed{{{answer}}}"
    verdict = judge([text], [gold])
    assert verdict == [plainly(text, gold)]


def test_what_a_batch_has_in_common_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def counted(text: str, *, parsing_timeout: None) -> list[object]:
        parsed.append(text)
        return parse(text, parsing_timeout=parsing_timeout)

    monkeypatch.setattr("headrace_rewards.judges.math_verify_judge.parse", counted)
    texts = [rf"Step {n}, so $\boxed{{\sqrt{{3}}}}$." for n in range(8)] + [r"no: \boxed{\sqrt{2}}"] * 4
    assert judge(texts, [r"\sqrt{3}"] * 12) == [1.0] * 8 + [0.0] * 4
    assert parsed == [r"$\boxed{\sqrt{3}}$", r"\boxed{\sqrt{3}}", r"\boxed{\sqrt{2}}"]


def test_a_box_that_cannot_be_read_is_passed_over() -> None:
    assert judge([r"The answer: 5 or \boxed{\frac{1}{}"], ["5"]) == [1.0]


@pytest.mark.parametrize("gold", ["", " ", "???"])
def test_a_reference_without_mathematics_has_no_verdict(gold: str) -> None:
    assert judge(["5"], [gold]) == [None]


@pytest.mark.parametrize(
    ("gold", "text"),
    [(r"3\pi", r"\boxed{3\pi}"), (r"\sqrt{2}", r"$\sqrt 2$"), ("The answer is $5$", "5"), ("1,234", "1234")],
)
def test_a_bare_reference_is_latex_as_a_whole(gold: str, text: str) -> None:
    assert judge([text, "3"], [gold, gold]) == [1.0, 0.0]
