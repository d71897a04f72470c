"""Checks requests, and converts those of the engine protocol to vLLM's parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine import RequestRefused, SamplingConfig
from .worker_extension import MEASURED_COLUMNS


def require_servable(tokens: npt.NDArray[np.int32], more: int, limit: int, vocabulary: int) -> None:
    """Refuse requests that vLLM would accept and crash on: without a tokenizer it does not check token ids.

    `more`: tokens to be sampled after `tokens`; `limit`: most tokens of both together.
    """
    if len(tokens) < 1 or more < 1:
        raise RequestRefused("a prompt and a completion have at least one token each")
    if len(tokens) + more > limit:
        raise RequestRefused(f"{len(tokens)} prompt + {more} completion tokens exceed the context of {limit}")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise RequestRefused(f"token ids are 0 … {vocabulary - 1}")


def sampling_params(sampling: SamplingConfig, stop_tokens: Iterable[int]) -> Any:
    """vLLM's `SamplingParams`. `stop_tokens`: the model's own end tokens. Raises `RequestRefused`."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import StructuredOutputsParams

    schema = sampling.json_schema
    try:
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop_token_ids=[*stop_tokens, *sampling.stop_token_ids],
            seed=sampling.seed,
            logprobs=MEASURED_COLUMNS if sampling.distribution else 0,
            flat_logprobs=True,
            detokenize=False,
            structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
        )
    except (VLLMClientError, ValueError) as error:
        raise RequestRefused(str(error)) from error
