"""The dashboard: three static files and a vendored chart library. Nothing is fetched from another host."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

FOLDER = Path(__file__).parents[1] / "dashboard"

router = APIRouter(include_in_schema=False)
assets = StaticFiles(directory=FOLDER)


@router.get("/")
@router.get("/jobs/{job_id}")
async def page(job_id: str | None = None) -> FileResponse:
    """One page: the list of jobs, or one job."""
    return FileResponse(FOLDER / "index.html", headers={"cache-control": "no-cache"})


@router.get("/favicon.ico")
async def favicon() -> RedirectResponse:
    """Browsers ask for it unasked."""
    return RedirectResponse("/dashboard/icon.svg")
