"""Completions that are held to a JSON schema, for the transformers engine: by llguidance, which vLLM's backend also is.

    JsonConstraints(model)  ── constraint(schema) ──►  JsonConstraint   one a request
                                                         restrict   before a token is sampled: all others get no mass
                                                         accept     after it

A token that would lead out of the schema gets the logit -inf, so that what is sampled from, and what log-probabilities
are of, is the model's distribution over the others, normalised anew. The token that ends a text is allowed where the
JSON is complete, and then alone.

A schema of a few bytes can take any time and memory to read. So who asks for completions by one first has it read in a
process with limits (the gateway's `chat_prompts`), and here it is read once for all completions that follow it.
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

KEPT = 8
"""Schemas that stay read: those that were asked for last."""


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
        self._reading = threading.Lock()
        self._read: OrderedDict[str, Any] = OrderedDict()
        """Matchers at their beginning by schema, the one used last at the end."""

    def constraint(self, schema: str) -> JsonConstraint:
        """One more completion by this schema, which takes up to a second for a large one that was not read yet.

        Any thread may call it. Raises `RequestRefused` for a schema that is not supported.
        """
        with self._reading:
            matcher = self._read.get(schema)
            if matcher is None:
                matcher = self._read[schema] = self._matcher(schema)
            self._read.move_to_end(schema)
            while len(self._read) > KEPT:
                self._read.popitem(last=False)
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
    """Of one completion, from its first token on."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        """`matcher` is an `LLMatcher` at its beginning."""
        self._matcher = matcher
        self._bits = np.zeros(-(-vocabulary // 32), np.int32)

    def restrict(self, logits: torch.Tensor) -> None:
        """Set those of `logits` [V] to -inf that may not come next. Raises `RequestRefused` beyond llguidance's limits
        on time and memory of a step."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        _check(self._matcher)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little", count=len(logits)).astype(bool)
        if not allowed.any():
            raise RequestRefused("the JSON schema leaves no token that the model knows")
        logits.masked_fill_(torch.from_numpy(~allowed).to(logits.device), -torch.inf)

    def accept(self, token: int) -> None:
        """`token` was sampled. Raises `RequestRefused` as `restrict` does."""
        self._matcher.consume_token(token)
        _check(self._matcher)


def _check(matcher: Any) -> None:
    if matcher.is_error():
        raise RequestRefused(f"the JSON schema is not supported: {matcher.get_error()}")
