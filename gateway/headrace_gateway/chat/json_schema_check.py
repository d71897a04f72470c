"""Checks whether completions can be constrained to a JSON schema. It runs in a process with limits (`prompt_renderer`),
because a schema of a few bytes can take any amount of time and memory to compile.

Invariant: the cost for an engine is bounded. vLLM compiles the schema for each completion of a request: once beside its
steps, and once where it accepts the request, while no other chat proceeds. So the limit is on all of them together.
"""

from __future__ import annotations

import time

from headrace_core.errors import InvalidRequest

MAX_COMPILE_SECONDS = 5.0
"""CPU seconds for all completions of one request."""
_MAX_MESSAGE = 500
"""Characters of the library's error message that are shown."""


def schema_refused(why: str) -> InvalidRequest:
    """The error for a schema that is not supported."""
    message = f"response_format: the JSON schema is not supported: {why[:_MAX_MESSAGE]}"
    return InvalidRequest(message, param="response_format", code="unsupported_json_schema")


class JsonSchemaCheck:
    """Checks schemas for one tokenizer, by llguidance, with which both engines constrain completions."""

    def __init__(self, tokenizer_json: str) -> None:
        from llguidance import LLTokenizer  # imported only when a chat needs it

        try:
            self._tokenizer = LLTokenizer(tokenizer_json)
        except ValueError as error:
            raise schema_refused(f"the model's tokenizer cannot be held to JSON: {error}") from error

    def check(self, schema: str, completions: int) -> None:
        """Compile the schema, and compute which tokens may come first. Raises `InvalidRequest`, also if that takes too
        long for this many completions."""
        began = time.process_time()
        self._compile(schema)
        seconds = time.process_time() - began
        if seconds * completions > MAX_COMPILE_SECONDS:
            fewer = "make it smaller" if completions == 1 else "make it smaller, or ask for fewer completions"
            raise schema_refused(
                f"compiling it took {seconds:.1f} s, once for each completion; together {MAX_COMPILE_SECONDS:g} s are "
                f"allowed: {fewer}"
            )

    def _compile(self, schema: str) -> None:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_json_schema(schema), log_level=0)
        except ValueError as error:
            raise schema_refused(str(error)) from error
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise schema_refused(matcher.get_error())
        if matcher.is_accepting() or matcher.is_stopped():  # the empty text, which is no JSON
            raise schema_refused("no JSON is valid by it")
