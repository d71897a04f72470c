"""Completions that are held to a JSON schema, for the transformers engine: by llguidance, which vLLM's backend also is.

    JsonConstraints(model)  ── constraint(schema) ──►  JsonConstraint   one a request
                                                         restrict   before a token is sampled: all others get no mass
                                                         accept     after it

A token that would lead out of the schema gets the logit -inf, so that what is sampled from, and what log-probabilities
are of, is the model's distribution over the others, normalised anew. The token that ends a text is allowed where the
JSON is complete, and then alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from .engine import RequestRefused


class JsonConstraints:
    """Of one model. Raises `RequestRefused` for a tokenizer that llguidance cannot read."""

    def __init__(self, model: Path, vocabulary: int, end_tokens: tuple[int, ...]) -> None:
        import llguidance.hf  # only where a chat asks for it

        tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
        if not end_tokens:
            raise RequestRefused("the model has no token that ends a text, so that its JSON would never end")
        try:
            self._tokenizer: Any = llguidance.hf.from_tokenizer(
                tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=list(end_tokens)
            )
        except ValueError as error:
            raise RequestRefused(f"the model's tokenizer cannot be held to JSON: {error}") from error

    def constraint(self, schema: str) -> JsonConstraint:
        """Takes up to a second, for a large schema. Raises `RequestRefused` for one that is not supported."""
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(schema)
        except ValueError as error:
            raise RequestRefused(f"the JSON schema is not supported: {error}") from error
        return JsonConstraint(LLMatcher(self._tokenizer, grammar, log_level=0), self._tokenizer.vocab_size)


class JsonConstraint:
    """Of one completion, from its first token on."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        """`matcher` is an `LLMatcher` at its beginning."""
        self._matcher = matcher
        self._bits = np.zeros(-(-vocabulary // 32), np.int32)
        self._check()

    def restrict(self, logits: torch.Tensor) -> None:
        """Set those of `logits` [V] to -inf that may not come next. Raises `RequestRefused` beyond llguidance's limits
        on time and memory of a step."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little", count=len(logits)).astype(bool)
        if not allowed.any():
            raise RequestRefused("the JSON schema leaves no token that the model knows")
        logits.masked_fill_(torch.from_numpy(~allowed).to(logits.device), -torch.inf)

    def accept(self, token: int) -> None:
        """`token` was sampled. Raises `RequestRefused` as `restrict` does."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestRefused(f"the JSON schema is not supported: {self._matcher.get_error()}")
