"""The dashboard: static files, and one page for all of its addresses.

Nothing is fetched from another host, and nothing runs that does not come from these files: the browser is told so.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response
from starlette.types import Scope

FOLDER = Path(__file__).parents[1] / "dashboard"
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
"""Of every page and file of the dashboard. `no-cache`: a browser keeps them, and asks whether they are the same."""


class _Assets(StaticFiles):
    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response


router = APIRouter(include_in_schema=False)
assets = _Assets(directory=FOLDER)


def page_of(name: str) -> FileResponse:
    """A page of the dashboard's folder."""
    return FileResponse(FOLDER / name, headers=HEADERS)


@router.get("/")
@router.get("/compare")
@router.get("/jobs/{job_id}")
async def page(job_id: str | None = None) -> FileResponse:
    """The list of jobs, jobs beside each other, or one job."""
    return page_of("index.html")


@router.get("/jobs/{job_id}/completions")
async def completions(job_id: str) -> FileResponse:
    """What steps of one job trained on, to be read."""
    return page_of("completions.html")


@router.get("/favicon.ico")
async def favicon() -> RedirectResponse:
    """Browsers ask for it unasked."""
    return RedirectResponse("/dashboard/icon.svg")
