"""`text_similarity` of OpenAI's graders: how similar two filled templates are, from 0 to 1.

    fuzzy_match      characters: 1 - (insertions and deletions that make one of the other) / (their lengths together)
    bleu, gleu       words and punctuation marks, up to four in a row
    meteor           words, and where those differ, their English stems
    rouge_1 … 5, _l  words in a row, or the longest common subsequence of words: F1
    cosine           how often each word occurs, whatever the order

bleu and gleu are case-sensitive; the metrics below them ignore case and punctuation. A text without words scores 0
against any text, even itself, by every metric but `fuzzy_match`.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import snowballstemmer
from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from .spec import GraderSpec
from .string_check import TemplateText
from .text_pair import TextPairReward

Words = Sequence[str]

_WORD = r"\d+(?:[.,]\d+)*|[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’]\w+)*"
"""A number with its decimals, a Chinese or Japanese character (written without spaces), or a run of letters."""
_WORDS = re.compile(_WORD)
_TOKENS = re.compile(rf"{_WORD}|[^\w\s]")


def fuzzy_match(text: str, reference: str) -> float:
    """Normalised indel similarity of the characters (rapidfuzz's `ratio`); 1 for two empty texts."""
    return fuzz.ratio(text, reference) / 100.0


def bleu(text: str, reference: str) -> float:
    """BLEU (Papineni et al., 2002) of one sentence, as sacrebleu computes it: an order without a match counts as half a
    match, the next such order as a quarter, … (Chen and Cherry, 2014, number 3); orders longer than the text are left
    out."""
    tokens, wanted = _TOKENS.findall(text), _TOKENS.findall(reference)
    logs, credit = list[float](), 1.0
    for n in range(1, min(4, len(tokens)) + 1):
        matches, total = _matches(tokens, wanted, n), len(tokens) - n + 1
        if n == 1 and not matches:
            return 0.0
        if not matches:
            credit /= 2
        logs.append(math.log((matches or credit) / total))
    if not logs:
        return 0.0
    brevity = min(0.0, 1 - len(wanted) / len(tokens))
    return math.exp(brevity + sum(logs) / len(logs))


def gleu(text: str, reference: str) -> float:
    """GLEU (Wu et al., 2016, section 4.3): the smaller of precision and recall over all runs of one to four tokens."""
    tokens, wanted = _TOKENS.findall(text), _TOKENS.findall(reference)
    matches = sum(_matches(tokens, wanted, n) for n in range(1, 5))
    runs = max(sum(max(0, len(side) - n + 1) for n in range(1, 5)) for side in (tokens, wanted))
    return matches / runs if runs else 0.0


def meteor(text: str, reference: str) -> float:
    """METEOR (Banerjee and Lavie, 2005; α 0.9, β 3, γ 0.5) with its exact and stem stages; WordNet's synonyms are not
    looked up."""
    words, wanted = _words(text), _words(reference)
    pairs = _aligned(words, wanted)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(words), len(pairs) / len(wanted)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    follows = sum((i + 1, j + 1) == after for (i, j), after in itertools.pairwise(pairs))
    return mean * (1 - 0.5 * ((len(pairs) - follows) / len(pairs)) ** 3)


def rouge_n(text: str, reference: str, n: int) -> float:
    """ROUGE-N (Lin, 2004): F1 of the runs of `n` words."""
    words, wanted = _words(text), _words(reference)
    return _f1(_matches(words, wanted, n), len(words) - n + 1, len(wanted) - n + 1)


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L (Lin, 2004): F1 of the longest common subsequence of words."""
    words, wanted = _words(text), _words(reference)
    return _f1(LCSseq.similarity(words, wanted), len(words), len(wanted))


def cosine(text: str, reference: str) -> float:
    """Cosine of the two vectors of word counts. (OpenAI's compares embeddings; here no model is called.)"""
    counts, wanted = Counter(_words(text)), Counter(_words(reference))
    if not counts or not wanted:
        return 0.0
    lengths = math.sqrt(sum(c * c for c in counts.values()) * sum(c * c for c in wanted.values()))
    return min(1.0, sum(count * wanted[word] for word, count in counts.items()) / lengths)


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    **{f"rouge_{n}": functools.partial(rouge_n, n=n) for n in range(1, 6)},
    "rouge_l": rouge_l,
    "cosine": cosine,
}


class TextSimilaritySpec(GraderSpec):
    """The fields of OpenAI's grader."""

    type: Literal["text_similarity"]
    input: TemplateText
    reference: TemplateText
    evaluation_metric: Literal[
        "fuzzy_match",
        "bleu",
        "gleu",
        "meteor",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
        "cosine",
    ]


class TextSimilarity(TextPairReward):
    """Scores from 0 to 1."""

    def __init__(self, spec: TextSimilaritySpec) -> None:
        super().__init__(spec.input, spec.reference, METRICS[spec.evaluation_metric])


def _words(text: str) -> Words:
    return _WORDS.findall(text.casefold())


def _matches(words: Words, wanted: Words, n: int) -> int:
    """Number of n-grams that both have; each counts as often as in the text that has it less often."""
    return (_runs(words, n) & _runs(wanted, n)).total()


def _runs(words: Words, n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _f1(matches: int, found: int, wanted: int) -> float:
    return 2 * matches / (found + wanted) if matches else 0.0


def _aligned(words: Words, wanted: Words) -> list[tuple[int, int]]:
    """(index in `words`, index in `wanted`) of each match, in the order of `words`.

    Equal words are paired first, then equal stems; going from the end, each word with its last free match.
    """
    pairs = list[tuple[int, int]]()
    left, right = list(range(len(words))), list(range(len(wanted)))
    for form in (str, _stem):
        places: dict[str, list[int]] = {}
        for j in right:
            places.setdefault(form(wanted[j]), []).append(j)
        pairs += [(i, free.pop()) for i in reversed(left) if (free := places.get(form(words[i])))]
        left, right = _rest(left, {i for i, _ in pairs}), _rest(right, {j for _, j in pairs})
    return sorted(pairs)


def _rest(places: list[int], taken: set[int]) -> list[int]:
    return [place for place in places if place not in taken]


@functools.lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    return snowballstemmer.stemmer("english").stemWord(word)
