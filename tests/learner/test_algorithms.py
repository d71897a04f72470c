"""Names known to every part, and the learner's implementations of them, are the same."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from headrace_core.algorithms import ALGORITHMS, AlgorithmFacts
from headrace_core.errors import InvalidRequest
from headrace_core.hyperparameters import Hyperparameters
from headrace_learner.algorithms import IMPLEMENTATIONS, algorithm


def test_every_name_is_implemented_and_no_other() -> None:
    assert IMPLEMENTATIONS.keys() == ALGORITHMS.keys()


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="unknown algorithm 'gripo'; known: grpo"):
        algorithm("gripo")
    with pytest.raises(ValidationError, match="unknown algorithm 'gripo'; known: grpo"):
        Hyperparameters(algorithm="gripo")


def test_an_algorithm_sets_what_the_user_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "higher", AlgorithmFacts("clips higher", defaults={"clip_high": 0.28}))
    assert Hyperparameters(algorithm="higher").clip_high == 0.28
    assert Hyperparameters(algorithm="higher", clip_high=0.3).clip_high == 0.3
    assert Hyperparameters.model_validate({"algorithm": "higher", "clip_high": "auto"}).clip_high == 0.28
