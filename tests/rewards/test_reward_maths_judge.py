"""The judge's short cuts against math-verify itself."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from headrace_rewards.judges.maths_judge import boxed, core, judge

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


@settings(max_examples=30, deadline=None, derandomize=True)
@given(answer=INTEGERS, other=INTEGERS, shape=st.sampled_from(["{}", r"\boxed{{{}}}", r"so $\boxed{{{}}}$."]))
def test_integers_are_compared_as_math_verify_compares_them(answer: int, other: int, shape: str) -> None:
    text = shape.format(answer)
    for gold in (answer, -answer, answer + 1, other):
        assert judge([text], [str(gold)]) == [plainly(text, str(gold))] == [float(answer == gold)]


def test_what_a_batch_has_in_common_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def counted(text: str, *, parsing_timeout: None) -> list[object]:
        parsed.append(text)
        return parse(text, parsing_timeout=parsing_timeout)

    monkeypatch.setattr("headrace_rewards.judges.maths_judge.parse", counted)
    texts = [rf"Step {n}, so $\boxed{{\frac{{3}}{{4}}}}$." for n in range(8)] + [r"no: \boxed{\sqrt{2}}"] * 4
    assert judge(texts, [r"\frac{6}{8}"] * 12) == [1.0] * 8 + [0.0] * 4
    assert parsed == [r"$\boxed{\frac{3}{4}}$", r"\boxed{\frac{6}{8}}", r"\boxed{\sqrt{2}}"]


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
