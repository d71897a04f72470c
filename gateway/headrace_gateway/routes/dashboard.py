"""The dashboard: static files, and one page for all of its addresses.

Nothing is fetched from another host, and nothing runs that does not come from these files: the browser is told so.
A page is some forty files, so each is served with little work: from a table of names, in one piece, and not at all
where the browser has it.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from headrace_core.errors import NotFound

FOLDER = Path(__file__).parents[1] / "dashboard"
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
"""Of every page and file of the dashboard. `no-cache`: a browser keeps them, and asks whether they are the same."""
_FILES = {p.relative_to(FOLDER).as_posix(): p for p in FOLDER.rglob("*") if p.is_file()}
"""By the name they are asked for: what is not in here is not served, whatever the name."""

router = APIRouter(include_in_schema=False)


@router.get("/")
@router.get("/compare")
@router.get("/jobs/{job_id}")
async def page(request: Request, job_id: str | None = None) -> Response:
    """The list of jobs, jobs beside each other, or one job."""
    return _served("index.html", request)


@router.get("/jobs/{job_id}/completions")
async def completions(request: Request, job_id: str) -> Response:
    """What steps of one job trained on, to be read."""
    return _served("completions.html", request)


@router.get("/dashboard/{name:path}")
async def asset(request: Request, name: str) -> Response:
    """A file of the dashboard."""
    return _served(name, request)


@router.get("/favicon.ico")
async def favicon() -> RedirectResponse:
    """Browsers ask for it unasked."""
    return RedirectResponse("/dashboard/icon.svg")


def _served(name: str, request: Request) -> Response:
    path = _FILES.get(name)
    if path is None:
        raise NotFound(f"the dashboard has no file {name!r}")
    stat = path.stat()
    etag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
    headers = {**HEADERS, "etag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    # A few kilobytes from the page cache: to give the reading to a thread costs ten times the reading.
    return Response(path.read_bytes(), media_type=mimetypes.guess_type(name)[0], headers=headers)
