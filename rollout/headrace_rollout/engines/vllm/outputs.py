"""Converts vLLM's outputs to the arrays of the engine protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine import EngineFailure, OnTokens


def columns(completion: Any) -> npt.NDArray[np.float32]:
    """[C, T] vLLM's log-probability columns: those of the sampled tokens, then measurements (`worker_extension`)."""
    return np.asarray(completion.logprobs.logprobs, dtype=np.float32).reshape(len(completion.token_ids), -1).T


def report_tokens(on_tokens: OnTokens, completion: Any, reported: int) -> int:
    """Pass a completion's tokens after the first `reported` to `on_tokens`. Returns how many are reported now."""
    ids, flat = completion.token_ids, completion.logprobs.logprobs
    if len(ids) > reported:
        width = len(flat) // len(ids)
        on_tokens(list(ids[reported:]), list(flat[reported * width :: width]))
    return len(ids)


def per_token(spans: Any, length: int) -> npt.NDArray[np.int32]:
    """[length] the version of each token, from vLLM's spans (version, start, end) over output positions."""
    versions = np.full(length, -1, dtype=np.int32)
    for span in spans:
        versions[span.start : span.end] = int(span.version)
    if (versions < 0).any():
        raise EngineFailure(f"vLLM left tokens without a version: {spans}")
    return versions


def prompt_scores(flat: Any, tokens: npt.NDArray[np.int32], start: int, temperature: float) -> npt.NDArray[np.float32]:
    """Log-probabilities of tokens[start:] at `temperature` from vLLM's at temperature 1: log p_T ∝ log p / T,
    renormalised."""
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
