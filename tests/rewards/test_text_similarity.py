"""`text_similarity`: every metric against published tools or a count by hand, and texts that have nothing in them."""

from __future__ import annotations

import pytest

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, Score
from headrace_rewards.graders.text_similarity import METRICS
from headrace_rewards.protocol import Sample
from headrace_rewards.registry import build, validate

CAT = ("the cat is sitting on the mat", "the cat sat on the mats")
GUIDE = (
    "It is a guide to action which ensures that the military always obeys the commands of the party",
    "It is a guide to action that ensures that the military will forever heed Party commands",
)
SHORT = ("a b", "a b c d e f g h")
REPEATED = ("the the the the the the the", "the cat is on the mat")
SAME = ("the cat sat on the mat", "the cat sat on the mat")

REFERENCE = [
    # bleu: sacrebleu 2.6 (smoothing `exp`, effective order); gleu: nltk 3.10; rouge: rouge-score 0.1.2
    ("bleu", CAT, 0.185751),
    ("bleu", GUIDE, 0.411804),
    ("bleu", SHORT, 0.049787),
    ("bleu", REPEATED, 0.078098),
    ("bleu", SAME, 1.0),
    ("gleu", CAT, 0.272727),
    ("gleu", GUIDE, 0.439394),
    ("gleu", SHORT, 0.115385),
    ("gleu", SAME, 1.0),
    # meteor: nltk 3.10 with an empty WordNet
    ("meteor", CAT, 0.793443),
    ("meteor", GUIDE, 0.694444),
    ("meteor", SHORT, 0.253378),
    ("meteor", REPEATED, 0.163934),
    ("meteor", SAME, 0.997685),
    ("rouge_1", GUIDE, 0.705882),
    ("rouge_2", GUIDE, 0.5),
    ("rouge_3", GUIDE, 0.4),
    ("rouge_4", GUIDE, 0.285714),
    ("rouge_5", GUIDE, 0.153846),
    ("rouge_l", GUIDE, 0.647059),
    ("rouge_5", CAT, 0.0),
    ("rouge_l", CAT, 0.615385),
    # by hand: (1·2 + 1·1 + 1·1) / √((2² + 4·1) · (2² + 4·1)); 2 · 3 / (4 + 5) of "ab c", "ab cd"
    ("cosine", ("the cat and the dog ran", "dog the the cat saw me"), 0.75),
    ("fuzzy_match", ("ab c", "ab cd"), 8 / 9),
]


@pytest.mark.parametrize(("metric", "texts", "value"), REFERENCE, ids=lambda v: v if isinstance(v, str) else "")
def test_figures_of_published_tools(metric: str, texts: tuple[str, str], value: float) -> None:
    assert METRICS[metric](*texts) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("texts", [("", "yes"), ("yes", ""), ("…!", "yes"), ("\ud800", "yes")])
def test_texts_without_words_have_nothing_in_common(metric: str, texts: tuple[str, str]) -> None:
    assert METRICS[metric](*texts) == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_two_empty_texts(metric: str) -> None:
    assert METRICS[metric]("", "") == (1.0 if metric == "fuzzy_match" else 0.0)


@pytest.mark.parametrize("metric", METRICS)
def test_values_lie_between_0_and_1_and_grow_with_likeness(metric: str) -> None:
    reference = "one two three four five six seven eight nine ten"
    near, far = METRICS[metric](f"{reference} eleven", reference), METRICS[metric]("eleven nine seven five", reference)
    assert 0.0 <= far < near <= 1.0


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"bleu", "gleu", "fuzzy_match"}))
def test_case_and_punctuation_do_not_count_where_words_do(metric: str) -> None:
    plain = "so the answer is 3.14 and it doesn't change"
    assert METRICS[metric]("SO, the answer is 3.14 (and it doesn't change)!", plain) == METRICS[metric](plain, plain)


def test_numbers_and_unspaced_scripts_are_words() -> None:
    assert METRICS["rouge_1"]("3.14", "3.15") == 0.0
    assert METRICS["rouge_1"]("今天天气好", "今天天气很好") == pytest.approx(10 / 11)
    assert METRICS["meteor"]("he jumped", "she jumps") == pytest.approx(
        0.25
    )  # one stem in two words, in one chunk: 0.5 · 0.5


def grader(metric: str) -> dict[str, str]:
    return {
        "type": "text_similarity",
        "name": "alike",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
        "evaluation_metric": metric,
    }


async def test_as_a_grader() -> None:
    samples = [Sample("yes", {"answer": "yes"}), Sample("", {"answer": "yes"}), Sample("yes")]
    same, empty, missing = await build(grader("fuzzy_match")).score(samples)
    assert (same, empty) == (Score(1.0), Score(0.0))
    assert missing == Failure("bad_input", "there is no 'item.answer'; 'item' has no keys")


def test_every_metric_can_be_asked_for_and_no_other() -> None:
    for metric in METRICS:
        assert validate(grader(metric)).model_dump()["evaluation_metric"] == metric
    with pytest.raises(InvalidRequest, match="rouge_5"):
        validate(grader("rouge_6"))
