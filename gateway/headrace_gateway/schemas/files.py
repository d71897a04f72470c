"""Files, as OpenAI's client reads them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Page, ResponseModel

UploadPurpose = Literal["fine-tune", "evals", "user_data", "batch", "assistants", "vision"]
Purpose = Literal[UploadPurpose, "fine-tune-results"]


class FileObject(ResponseModel):
    """An uploaded file, or the measurements of an ended job."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: Annotated[int, Field(description="Unix seconds.")]
    filename: str
    purpose: Purpose
    status: Literal["processed"]
    expires_at: Annotated[None, Field(description="Files do not expire.")]
    status_details: None


class FileList(Page):
    """A page of files."""

    data: list[FileObject]


class DeletedFile(ResponseModel):
    """A file that is no more."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]
