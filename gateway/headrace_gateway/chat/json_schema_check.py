"""Whether completions can be held to a JSON schema: asked in a process with limits (`chat_prompts`): a schema of a few
bytes can take any time and memory to read."""

from __future__ import annotations

from headrace_core.errors import InvalidRequest

_MOST_TOLD = 500
"""Characters of an error of the library's."""


def schema_refused(why: str) -> InvalidRequest:
    """What the caller is told."""
    message = f"response_format: the JSON schema is not supported: {why[:_MOST_TOLD]}"
    return InvalidRequest(message, param="response_format", code="unsupported_json_schema")


class JsonSchemaCheck:
    """Of one tokenizer: whether llguidance, by which both engines hold completions to schemas, can read one."""

    def __init__(self, tokenizer_json: str) -> None:
        from llguidance import LLTokenizer  # where a chat asks for it

        try:
            self._tokenizer = LLTokenizer(tokenizer_json)
        except ValueError as error:
            raise schema_refused(f"the model's tokenizer cannot be held to JSON: {error}") from error

    def check(self, schema: str) -> None:
        """Reads it and computes which tokens may come first. Raises `InvalidRequest`."""
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_json_schema(schema), log_level=0)
        except ValueError as error:
            raise schema_refused(str(error)) from error
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise schema_refused(matcher.get_error())
        if matcher.is_accepting() or matcher.is_stopped():  # nothing at all, which is no JSON
            raise schema_refused("no JSON is valid by it")
