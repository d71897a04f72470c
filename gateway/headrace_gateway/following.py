"""A job in the terminal: what it says, line by line, and one live line below."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_STYLE = {"info": "", "warn": "yellow", "error": "bold red"}


def follow(console: Console, entries: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Show entries of `Client.stream` as they come; returns the job as the last one describes it."""
    job: dict[str, Any] = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        line = progress.add_task("waiting", total=None, note="")
        for kind, data in entries:
            if kind == "state":
                job = data["job"]
                progress.update(line, description=job["status"], total=job["total_steps"])
            elif kind == "step":
                progress.update(line, completed=data["step"], note=_note(data))
            elif kind == "event" and _worth_a_line(data):
                console.print(f"[dim]{data['level']:5}[/] {data['message']}", style=_STYLE[data["level"]])
    return job


def _worth_a_line(event: dict[str, Any]) -> bool:
    """Steps are on the live line; everything else that a job says stays."""
    return event["type"] == "message" or "full_valid_mean_reward" in (event["data"] or {})


def _note(step: dict[str, Any]) -> str:
    ages = [int(age) for age, of_age in step["ages"].items() if of_age["tokens"]]
    reward = "none" if step["reward_mean"] is None else f"{step['reward_mean']:.3f}"
    return f"reward {reward} · oldest token {max(ages, default=0)}"
