"""What requests have in common, and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from headrace_core.config.exact_model import ExactModel


class RequestModel(ExactModel):
    """A request has no other fields than those of its shape: one that was passed over would look as if it had acted."""

    model_config = ConfigDict(extra="forbid")


@with_config(extra="forbid")
class ResponseModel(TypedDict):
    """An answer has the fields of its shape and no other."""


class Page(ResponseModel):
    """A page of a list; the next one is asked for with `after` = `last_id`."""

    object: Literal["list"]
    has_more: Annotated[bool, Field(description="Whether there are more entries.")]
    first_id: Annotated[str | None, Field(description="Id of the first entry of `data`; null for an empty page.")]
    last_id: Annotated[str | None, Field(description="Id of the last entry of `data`; null for an empty page.")]


class ErrorDetail(ResponseModel):
    """What went wrong."""

    message: Annotated[str, Field(description="Explanation for people: what is wrong, and what to change.")]
    type: Literal["invalid_request_error", "server_error"]
    param: Annotated[str | None, Field(description="The field of the request that is wrong, as a path with dots.")]
    code: Annotated[str | None, Field(description="Stable identifier for programs.")]


class ErrorAnswer(ResponseModel):
    """Every error, whatever raised it."""

    error: ErrorDetail
