"""Shows a job live: its events line by line, and below them a summary.

On a terminal the summary is redrawn as entries arrive. Elsewhere each step is a line, at most one per second, so that
the log of a long job stays readable.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from headrace_core.number_text import decimal

from .job_summary import JobSummary, ages_line

_STYLE = {"info": "", "warn": "yellow", "error": "bold red"}
_PLAIN_SECONDS = 1.0


def follow(console: Console, entries: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Show entries of `Client.stream` as they come, until the job has ended or pauses; returns it as the last one
    describes it."""
    picture = JobSummary()
    entries = _until_paused(entries)
    if console.is_terminal:
        with Live(picture, console=console, transient=True, refresh_per_second=4):
            for kind, data in entries:
                picture.take(kind, data)
                if kind == "event":
                    _report(console, data)
    else:
        _plainly(console, entries, picture)
    return picture.job


def _until_paused(entries: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """With the one that says so: nobody knows when, or whether, it is resumed."""
    for kind, data in entries:
        yield kind, data
        if kind == "state" and data["job"]["status"] == "paused":
            return


def _plainly(console: Console, entries: Iterable[tuple[str, dict[str, Any]]], picture: JobSummary) -> None:
    written = -_PLAIN_SECONDS
    for kind, data in entries:
        picture.take(kind, data)
        if kind == "event":
            _report(console, data)
        elif kind == "step":
            last = data["step"] == data["total_steps"]
            if last or time.monotonic() - written >= _PLAIN_SECONDS:
                console.print(escape(_step_line(data)), soft_wrap=True)
                written = time.monotonic()


def _step_line(step: dict[str, Any]) -> str:
    return (
        f"step {step['step']}/{step['total_steps']} · reward {decimal(step['reward_mean'], 3)} · ages {ages_line(step)}"
    )


def _report(console: Console, event: dict[str, Any]) -> None:
    """Steps are in the picture; everything else that a job says stays."""
    if event["type"] == "message" or "full_valid_mean_reward" in (event["data"] or {}):
        line = f"[dim]{event['level']:5}[/] {escape(event['message'])}"
        console.print(line, style=_STYLE[event["level"]], soft_wrap=True)
