"""HTTP client of the gateway's public API, for the command line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
from httpx_sse import EventSource

from headrace_core.errors import HeadraceError, InvalidRequest, NotFound, Unavailable

KEY_VARIABLE = "HEADRACE_API_KEY"
_UPLOAD_SECONDS = 600.0
_SUBMIT_SECONDS = 180.0
_STREAM_SILENCE_SECONDS = 60.0
"""The gateway's streams carry a comment every ten seconds: without one for this long, the connection is dead."""
_MAX_PAST_ENTRIES = 400
"""Most entries of each kind of a job's past, which the gateway downsamples: so a long job is shown at once."""
_RECONNECT_SECONDS = 60.0
"""How long a broken stream is retried, which then continues where it broke: a gateway restarts within this time."""


class Client:
    """A client of the gateway at `url`. It sends the key in `HEADRACE_API_KEY`, if there is one.

    Methods raise `InvalidRequest` or `NotFound` with the gateway's own message, or `Unavailable`.
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        self._url = url.rstrip("/")
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self._url, timeout=timeout, headers=headers)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def upload(self, path: Path) -> str:
        """Upload a file; returns its id."""
        with path.open("rb") as content:
            files = {"file": (path.name, content)}
            answer = self._call(
                "POST", "/v1/files", files=files, data={"purpose": "fine-tune"}, timeout=_UPLOAD_SECONDS
            )
        return str(answer["id"])

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Submit a job; returns it."""
        return self._call("POST", "/v1/fine_tuning/jobs", json=body, timeout=_SUBMIT_SECONDS)

    def overview(self, limit: int) -> list[dict[str, Any]]:
        """The newest jobs with their progress, newest first."""
        jobs: list[dict[str, Any]] = self.get("/v1/headrace/overview", limit=limit)["data"]
        return jobs

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """The answer of any GET route."""
        return self._call("GET", path, params=params)

    def job(self, job_id: str, part: str = "", **params: Any) -> dict[str, Any]:
        """A job, or a resource below it: `part` is `/ledger`, `/events`, …"""
        return self._call("GET", f"{_path(job_id)}{part}", params=params)

    def change(self, job_id: str, to: Literal["cancel", "pause", "resume"]) -> dict[str, Any]:
        """Cancel, pause or resume a job; returns the job afterwards."""
        return self._call("POST", f"{_path(job_id)}/{to}")

    def fork(self, job_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Fork a job; returns the new one."""
        return self._call("POST", f"{_path(job_id)}/fork", json=body, timeout=_SUBMIT_SECONDS)

    def set(self, job_id: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Change a job's settings; returns all of them afterwards."""
        return self._call("PATCH", f"{_path(job_id)}/settings", json=changes)

    def stream(self, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(kind, data) of a job's events and measurements, until the job ends. Its past is downsampled."""
        for kind, data in self._stream(f"{_path(job_id)}/stream?thin={_MAX_PAST_ENTRIES}"):
            if kind != "live":  # only marks the end of the past
                yield kind, json.loads(data)

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """A job's events, from its beginning to its end."""
        for _, data in self._stream(f"{_path(job_id)}/events?stream=true"):
            if data != "[DONE]":
                yield json.loads(data)

    def _stream(self, path: str) -> Iterator[tuple[str, str]]:
        """(kind, data) of server-sent events. After a broken connection it reconnects, and continues after the last
        event."""
        last, deadline = "", time.monotonic()  # the first connection is not retried
        while True:
            try:
                for entry, kind, data in self._read_connection(path, last):
                    last, deadline = entry, time.monotonic() + _RECONNECT_SECONDS
                    if kind == "done":
                        return
                    yield kind, data
                    if data == "[DONE]":
                        return
            except (httpx.TransportError, Unavailable) as error:
                if time.monotonic() >= deadline:
                    raise Unavailable(f"the connection to {self._url} broke: {error}") from error
                time.sleep(1.0)

    def _read_connection(self, path: str, last: str) -> Iterator[tuple[str, str, str]]:
        """(id, kind, data) of each event of one connection, which begins after the event `last`."""
        timeout = httpx.Timeout(30.0, read=_STREAM_SILENCE_SECONDS)
        headers = {"Last-Event-ID": last} if last else {}
        with self._http.stream("GET", path, timeout=timeout, headers=headers) as response:
            if response.is_error:
                response.read()
                _raise(response)
            for event in EventSource(response).iter_sse():
                last = event.id or last
                if event.data:  # else it is the empty line after a comment
                    yield last, event.event, event.data
        raise Unavailable("it ended before the job did")

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise Unavailable(
                f"no headrace server answers at {self._url} ({error}); start one with `headrace serve`, or give --url"
            ) from error
        if response.is_error:
            _raise(response)
        answer: dict[str, Any] = response.json()
        return answer


def _path(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{quote(job_id, safe='')}"


def _raise(response: httpx.Response) -> None:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError) as fault:
        raise Unavailable(f"{response.url} answered {response.status_code} without an explanation") from fault
    kind: type[HeadraceError] = InvalidRequest
    if response.status_code >= 500:
        kind = Unavailable
    elif response.status_code == 404:
        kind = NotFound
    raise kind(error["message"], param=error["param"], code=error["code"])
