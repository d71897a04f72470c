"""/v1/files: upload, list, retrieve, delete, content."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Path, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response
from starlette.requests import ClientDisconnect

from headrace_core.errors import InvalidState
from headrace_core.jobs.job_store import JobStore
from headrace_core.types.job import ENDED

from ..context import Context, GatewayContext
from ..files import result_files
from ..principal import note_created_id
from ..schemas.files import DeletedFile, FileList, FileObject, Purpose, UploadPurpose
from ..views.objects import file_object
from ..web import upload_form
from ..web.durable_route import DurableRoute
from ..web.json_response import CLIENT_LEFT, json_response
from ..web.pagination import listing, page


class _FormRoute(DurableRoute):
    """Reads a form with bounds of its own: what is no file is kept in memory."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if "POST" not in self.methods:
            return handle

        async def bounded(request: Request) -> Response:
            try:
                await upload_form.read(request, request.app.state.gateway.files.folder)
            except ClientDisconnect:
                return Response(status_code=CLIENT_LEFT)
            try:
                return await handle(request)  # finds the form read
            finally:
                await request.close()

        return bounded


router = APIRouter(prefix="/v1/files", tags=["files"], route_class=_FormRoute)

_BYTES = "application/octet-stream"
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}}
}

FileId = Annotated[str, Path(max_length=200, description="Id of the file, from the upload's response.")]


@router.post("", response_model=FileObject)
async def upload(
    here: Context, request: Request, file: UploadFile, purpose: Annotated[UploadPurpose, Form()]
) -> Response:
    """Keep a file. Only `fine-tune` files can be trained on."""
    stored = await here.files.add(file.file, file.filename or "upload", purpose)
    note_created_id(request, stored.id)
    return json_response(file_object(stored))


@router.get("", response_model=FileList)
async def list_files(
    here: Context,
    after: Annotated[str | None, Query(max_length=200, description="Id of the last file of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Annotated[Literal["asc", "desc"], Query(description="Order by time; `desc` is newest first.")] = "desc",
    purpose: Purpose | None = None,
) -> Response:
    """Files: those that were uploaded, and the results of jobs that have ended."""
    files = [f for f in await result_files.every(here.files, here.jobs) if purpose in (None, f.purpose)]
    listed, has_more = page(files if order == "desc" else files[::-1], after, limit)
    answer: FileList = listing([file_object(f) for f in listed], has_more)
    return json_response(answer)


@router.get("/{file_id}", response_model=FileObject)
async def retrieve(here: Context, file_id: FileId) -> Response:
    """One file's description."""
    return json_response(file_object(await result_files.find(here.files, here.jobs, file_id)))


@router.delete("/{file_id}", response_model=DeletedFile)
async def delete(here: Context, file_id: FileId) -> Response:
    """Forget a file that no unfinished job needs. A job's result file is kept with its job."""
    result_files.check_removable(await result_files.find(here.files, here.jobs, file_id))
    await _not_in_use(here, file_id)
    await here.files.remove(file_id)
    return json_response(DeletedFile(id=file_id, object="file", deleted=True))


@router.get("/{file_id}/content", response_class=FileResponse, responses=_CONTENT)
async def content(here: Context, file_id: FileId) -> FileResponse:
    """The bytes, as they were uploaded."""
    stored = await result_files.find(here.files, here.jobs, file_id)
    return FileResponse(here.files.whole(stored), media_type=_BYTES, filename=stored.filename)


async def _not_in_use(here: GatewayContext, file_id: str) -> None:
    for job in await JobStore(here.redis).all():  # an admin's job may use a user's file
        if file_id in (job.training_file, job.validation_file) and job.status not in ENDED:
            which = f"job {job.id}" if here.principal.sees(job.owner) else "a job of another"
            raise InvalidState(f"file {file_id} is used by {which}, which is {job.status}", param="file_id")
