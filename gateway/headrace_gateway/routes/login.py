"""/login and /logout: a browser shows a key once, and then a cookie with the token of a session.

The cookie is for this host alone, for no script, and for no request that another site's page starts (SameSite=Strict);
what it may change, it may change from pages of this gateway only (`access`).
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from string import Template
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from headrace_core.errors import NotAuthenticated

from ..auth.api_keys import SESSION_SECONDS
from ..auth.request_info import SESSION_COOKIE
from ..context import Context
from ..principal import unchanged

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "pages"
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "referrer-policy": "same-origin",  # with less, browsers would send the form with the origin `null`
    "x-content-type-options": "nosniff",
}
_ON_THIS_HOST = re.compile(r"/(?![/\\])[\x21-\x7e]*")

Next = Annotated[str, Query(max_length=2048)]


@router.get("/login")
async def login_page(here: Context, request: Request, next: Next = "/") -> Response:
    """The form; for somebody who is logged in already, who they are and the way out."""
    if not here.settings.keys_required:
        return RedirectResponse(_safe(next), 303)
    try:
        holder = await here.keys.session_key(request.cookies.get(SESSION_COOKIE, ""))
    except NotAuthenticated:
        return _page("login", 200, next=_safe(next), wrong="")
    return _page("logout", 200, next=_safe(next), name=holder.name, scope=holder.scope)


@router.post("/login")
async def login(
    here: Context,
    request: Request,
    key: Annotated[str, Form(max_length=512)] = "",
    next: Annotated[str, Form(max_length=2048)] = "/",
) -> Response:
    """Begins a session; a wrong key gets the form again, with status 401."""
    if not here.settings.keys_required:
        unchanged(request)
        return RedirectResponse(_safe(next), 303)
    try:
        holder, token = await here.keys.open_session(key.strip())
    except NotAuthenticated as error:
        return _page("login", 401, next=_safe(next), wrong=error.message)
    request.state.principal = holder.principal  # for the audit log
    response = RedirectResponse(_safe(next), 303)
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout")
async def logout(here: Context, request: Request) -> Response:
    """Ends the session, here and in the browser."""
    holder = await here.keys.close_session(request.cookies.get(SESSION_COOKIE, ""))
    if holder is None:
        unchanged(request)
    else:
        request.state.principal = holder.principal  # for the audit log
    response = RedirectResponse("/login", 303)
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
    return response


def _page(file: str, status: int, **shown: str) -> HTMLResponse:
    text = Template((_FOLDER / f"{file}.html").read_text(encoding="utf-8"))
    values = {key: html.escape(value) for key, value in shown.items()}
    style = (_FOLDER / "style.css").read_text(encoding="utf-8")
    return HTMLResponse(text.substitute(values, style=style), status, _HEADERS)


def _safe(path: str) -> str:
    """Where to go on to: a path of this gateway, whatever was asked for."""
    return path if _ON_THIS_HOST.fullmatch(path) else "/"
