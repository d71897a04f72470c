"""/v1/files: upload, list, retrieve, delete, content."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.responses import FileResponse

from headrace_core.errors import InvalidState
from headrace_core.jobs import ENDED

from ..context import Gateway, Here
from ..schemas import file_object, listing, page

router = APIRouter(prefix="/v1/files", tags=["files"])

Purpose = Literal["fine-tune", "evals", "user_data", "batch", "assistants", "vision"]


@router.post("")
async def upload(here: Here, file: UploadFile, purpose: Annotated[Purpose, Form()]) -> dict[str, Any]:
    """Keep a file. Only `fine-tune` files can be trained on."""
    stored = await here.files.add(file.file, file.filename or "upload", purpose)
    return file_object(stored)


@router.get("")
async def list_files(
    here: Here,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    """Uploaded files."""
    files = [f for f in await here.files.all() if purpose in (None, f.purpose)]
    found, has_more = page(files if order == "desc" else files[::-1], after, limit)
    return listing([file_object(f) for f in found], has_more)


@router.get("/{file_id}")
async def retrieve(here: Here, file_id: str) -> dict[str, Any]:
    """One file's description."""
    return file_object(await here.files.get(file_id))


@router.delete("/{file_id}")
async def delete(here: Here, file_id: str) -> dict[str, Any]:
    """Forget a file that no unfinished job needs."""
    await _not_in_use(here, file_id)
    await here.files.remove(file_id)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/{file_id}/content")
async def content(here: Here, file_id: str) -> FileResponse:
    """The bytes."""
    stored = await here.files.get(file_id)
    return FileResponse(here.files.path(file_id), media_type="application/octet-stream", filename=stored.filename)


async def _not_in_use(here: Gateway, file_id: str) -> None:
    for job in await here.jobs.all():
        if file_id in (job.training_file, job.validation_file) and job.status not in ENDED:
            raise InvalidState(f"file {file_id} is used by job {job.id}, which is {job.status}", param="file_id")
