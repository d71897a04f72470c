"""Constrains completions to a JSON schema in the transformers engine, by llguidance, which is also vLLM's backend.

    JsonConstraints(model)  ── constraint(schema) ──►  JsonConstraint   one per request
                                                         restrict   before a token is sampled: masks all others
                                                         accept     after it was sampled

Tokens that would violate the schema get the logit -inf, so that sampling and log-probabilities use the model's
distribution renormalised over the others. The end-of-text token is allowed where the JSON is complete, and then is the
only one.

A schema of a few bytes can take unlimited time and memory to compile. So the gateway first compiles it in a process
with limits (`prompt_renderer`), and here it is compiled once for all completions that use it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from .engine import RequestRefused

MAX_CACHED = 8
"""Number of compiled schemas that are cached: those used last."""


class JsonConstraints:
    """The constraints for one model. Raises `RequestRefused` for a tokenizer that llguidance does not support."""

    def __init__(self, model: Path, vocabulary: int, end_tokens: tuple[int, ...]) -> None:
        import llguidance.hf  # imported here because only chats with a JSON schema need it

        tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
        if not end_tokens:
            raise RequestRefused("the model has no token that ends a text, so that its JSON would never end")
        try:
            self._tokenizer: Any = llguidance.hf.from_tokenizer(
                tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=list(end_tokens)
            )
        except ValueError as error:
            raise RequestRefused(f"the model's tokenizer cannot be held to JSON: {error}") from error
        self._compiling = threading.Lock()
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        """Matchers in their initial state, by schema; the one used last is at the end."""

    def constraint(self, schema: str) -> JsonConstraint:
        """A constraint for one more completion. A large schema that is not cached takes up to a second.

        Any thread may call it. Raises `RequestRefused` for a schema that is not supported.
        """
        with self._compiling:
            matcher = self._compiled.get(schema)
            if matcher is None:
                matcher = self._compiled[schema] = self._matcher(schema)
            self._compiled.move_to_end(schema)
            while len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
            return JsonConstraint(matcher.deep_copy(), self._tokenizer.vocab_size)

    def _matcher(self, schema: str) -> Any:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_json_schema(schema), log_level=0)
        except ValueError as error:
            raise RequestRefused(f"the JSON schema is not supported: {error}") from error
        _check(matcher)
        return matcher


class JsonConstraint:
    """The constraint of one completion, from its first token on."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        """`matcher` is an `LLMatcher` in its initial state."""
        self._matcher = matcher
        self._bits = np.zeros(-(-vocabulary // 32), np.int32)

    def restrict(self, logits: torch.Tensor) -> None:
        """Set the `logits` [V] of tokens that may not come next to -inf. Raises `RequestRefused` if a step exceeds
        llguidance's limits on time and memory."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        _check(self._matcher)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little", count=len(logits)).astype(bool)
        if not allowed.any():
            raise RequestRefused("the JSON schema leaves no token that the model knows")
        logits.masked_fill_(torch.from_numpy(~allowed).to(logits.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Advance by the sampled `token`. Raises `RequestRefused` as `restrict` does."""
        self._matcher.consume_token(token)
        _check(self._matcher)


def _check(matcher: Any) -> None:
    if matcher.is_error():
        raise RequestRefused(f"the JSON schema is not supported: {matcher.get_error()}")
