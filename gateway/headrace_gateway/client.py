"""The command line's way to the gateway: the public HTTP surface, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx

from headrace_core.errors import HeadraceError, InvalidRequest, Unavailable

_UPLOAD_SECONDS = 600.0
_SUBMIT_SECONDS = 180.0
_STREAM_SILENCE_SECONDS = 60.0
"""The gateway's streams carry a comment every ten seconds; after this long without any, the connection is dead."""


class Client:
    """A gateway at `url`. Methods raise `InvalidRequest` with the gateway's own message, or `Unavailable`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(base_url=self._url, timeout=30.0)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def upload(self, path: Path) -> str:
        """The id of the uploaded file."""
        with path.open("rb") as content:
            files = {"file": (path.name, content)}
            answer = self._call(
                "POST", "/v1/files", files=files, data={"purpose": "fine-tune"}, timeout=_UPLOAD_SECONDS
            )
        return str(answer["id"])

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """The job that was made."""
        return self._call("POST", "/v1/fine_tuning/jobs", json=body, timeout=_SUBMIT_SECONDS)

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """Jobs, newest first."""
        found: list[dict[str, Any]] = self._call("GET", "/v1/fine_tuning/jobs", params={"limit": limit})["data"]
        return found

    def job(self, job_id: str, part: str = "", **params: Any) -> dict[str, Any]:
        """A job, or one part of it: `/ledger`, `/events`, …"""
        return self._call("GET", f"{_path(job_id)}{part}", params=params)

    def change(self, job_id: str, to: Literal["cancel", "pause", "resume"]) -> dict[str, Any]:
        """The job afterwards."""
        return self._call("POST", f"{_path(job_id)}/{to}")

    def stream(self, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(kind, data) of everything a job says and measures, from its beginning to its end."""
        timeout = httpx.Timeout(30.0, read=_STREAM_SILENCE_SECONDS)
        try:
            with self._http.stream("GET", f"{_path(job_id)}/stream", timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    _raise(response)
                yield from _events(response.iter_lines())
        except httpx.TransportError as error:
            raise Unavailable(f"the connection to {self._url} broke: {error}") from error

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


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data" and kind != "done":
            yield kind, json.loads(value)


def _raise(response: httpx.Response) -> None:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError) as fault:
        raise Unavailable(f"{response.url} answered {response.status_code} without an explanation") from fault
    kind: type[HeadraceError] = Unavailable if response.status_code >= 500 else InvalidRequest
    raise kind(error["message"], param=error["param"], code=error["code"])
