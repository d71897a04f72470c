"""What vLLM answered to a request, as the arrays of the engine port."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine import EngineFailure, OnTokens


def columns(completion: Any) -> npt.NDArray[np.float32]:
    """[C, T] what vLLM returned in place of log-probabilities: those of the tokens sampled, then what was measured."""
    return np.asarray(completion.logprobs.logprobs, dtype=np.float32).reshape(len(completion.token_ids), -1).T


def tell(on_tokens: OnTokens, completion: Any, told: int) -> int:
    """Tell of a completion's tokens after the first `told`; returns how many have been told of."""
    ids, flat = completion.token_ids, completion.logprobs.logprobs
    if len(ids) > told:
        width = len(flat) // len(ids)
        on_tokens(list(ids[told:]), list(flat[told * width :: width]))
    return len(ids)


def per_token(spans: Any, length: int) -> npt.NDArray[np.int32]:
    """vLLM's spans (version, start, end) over output positions, as one version a token ([length])."""
    versions = np.full(length, -1, dtype=np.int32)
    for span in spans:
        versions[span.start : span.end] = int(span.version)
    if (versions < 0).any():
        raise EngineFailure(f"vLLM left tokens without a version: {spans}")
    return versions


def prompt_scores(flat: Any, tokens: npt.NDArray[np.int32], start: int, temperature: float) -> npt.NDArray[np.float32]:
    """Log-probabilities of tokens[start:] from vLLM's, which are untempered: log p_T ∝ log p / T, normalised anew."""
    if temperature == 1.0:
        return np.asarray(flat.logprobs[start - 1 :], dtype=np.float32)
    scores = np.empty(len(tokens) - start, dtype=np.float32)
    for row, position in enumerate(range(start, len(tokens))):
        entries = slice(flat.start_indices[position], flat.end_indices[position])
        tempered = np.asarray(flat.logprobs[entries], dtype=np.float64) / temperature
        top = tempered.max()
        own = flat.token_ids[entries].index(int(tokens[position]))
        # vLLM lists the prompt's own token first and again among the vocabulary.
        vocabulary = tempered[1:]
        scores[row] = tempered[own] - top - np.log(np.exp(vocabulary - top).sum())
    return scores
