"""Checks whether completions can be constrained to a JSON schema. It runs in a process with limits (`chat_prompts`),
because a schema of a few bytes can take any amount of time and memory to compile."""

from __future__ import annotations

from headrace_core.errors import InvalidRequest

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

    def check(self, schema: str) -> None:
        """Compile the schema, and compute which tokens may come first. Raises `InvalidRequest`."""
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
