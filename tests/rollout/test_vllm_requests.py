"""Requests that vLLM would accept and crash on are refused before they reach it."""

from __future__ import annotations

import numpy as np
import pytest

from headrace_rollout.engines.engine import RequestRefused
from headrace_rollout.engines.vllm.requests import require_servable

CONTEXT, VOCABULARY = 8, 100


def servable(tokens: list[int], more: int) -> None:
    require_servable(np.array(tokens, np.int32), more, CONTEXT, VOCABULARY)


def test_a_request_may_fill_the_context_with_any_token_of_the_vocabulary() -> None:
    servable([0, VOCABULARY - 1], CONTEXT - 2)


@pytest.mark.parametrize(
    ("tokens", "more", "message"),
    [
        ([], 1, "at least one token each"),
        ([1], 0, "at least one token each"),
        ([1, 2], CONTEXT - 1, r"2 prompt \+ 7 completion tokens exceed the context of 8"),
        ([1, -1], 1, "token ids are 0 … 99"),
        ([1, VOCABULARY], 1, "token ids are 0 … 99"),
    ],
)
def test_others_are_refused(tokens: list[int], more: int, message: str) -> None:
    with pytest.raises(RequestRefused, match=message):
        servable(tokens, more)
