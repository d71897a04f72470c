"""`response_format` of chats: any text, any JSON object, or JSON of a schema. See decision 0043."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from headrace_core.config.exact_model import ExactModel

MAX_SCHEMA_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 48
"""vLLM's limit is 64."""
OPTIONS = "x-guidance"
"""The key of a schema under which llguidance reads its options."""
WHITESPACE = " ?"
"""Pattern of white space between two parts of a completion's JSON: at most one space, on one line. If any white space
is allowed, small models write it without end."""


class JsonSchema(ExactModel):
    """The JSON schema of a completion."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="Accepted and ignored.")
    description: str | None = Field(
        None, max_length=4096, description="Accepted and ignored: the model does not see it."
    )
    json_schema: dict[str, Any] = Field(alias="schema", description="Enforced as it is written.")
    strict: bool | None = Field(None, description="The schema is always enforced.")

    @field_validator("json_schema")
    @classmethod
    def _plain(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if _depth(schema) > MAX_SCHEMA_DEPTH:
            raise ValueError(f"it is nested more than {MAX_SCHEMA_DEPTH} deep: use $defs")
        if OPTIONS in schema:
            raise ValueError(f"{OPTIONS} is set by the service: leave it out")
        if (size := len(json.dumps(schema))) > MAX_SCHEMA_BYTES:
            raise ValueError(f"it has {size} bytes, and {MAX_SCHEMA_BYTES} are taken: shorten it")
        return schema


def _depth(schema: Any) -> int:
    """Depth to which objects and arrays are nested; counting stops at one more than the limit."""
    level, depth = [schema], 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level, depth = [value for values in inner for value in values], depth + bool(inner)
    return depth


class ResponseFormat(ExactModel):
    """The form of completions."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _agree(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given with the type json_schema, and with no other")
        return self

    def schema_text(self) -> str | None:
        """The JSON schema that completions must satisfy, as JSON; None: any text."""
        if self.type == "text":
            return None
        schema = {"type": "object"} if self.json_schema is None else self.json_schema.json_schema
        return json.dumps(schema | {OPTIONS: {"whitespace_pattern": WHITESPACE}})
