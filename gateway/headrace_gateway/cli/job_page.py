"""`headrace jobs show`: one job as a page to read, made of what the routes answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from headrace_core.number_text import decimal

from .job_summary import JobSummary


def page(
    job: dict[str, Any],
    ledger: dict[str, Any],
    metrics: Iterable[dict[str, Any]],
    checkpoints: Sequence[dict[str, Any]],
    events: Sequence[dict[str, Any]],
) -> RenderableType:
    """Lists as the routes answer them: metrics oldest first, checkpoints and events newest first."""
    picture = JobSummary()
    picture.take("state", {"job": job, "ledger": ledger})
    for entry in metrics:
        picture.take(entry["kind"], entry["data"])
    return Group(*map(Text.from_markup, _head(job)), picture, *map(Text.from_markup, _tail(checkpoints, events)))


def _head(job: dict[str, Any]) -> Iterable[str]:
    method = job["method"]["reinforcement"]
    settings, grader = method["hyperparameters"], method["grader"]
    yield f"[bold]{job['id']}[/]"
    yield f"model      {escape(job['model'])}" + (f" · {escape(job['suffix'])}" if job["suffix"] else "")
    yield f"method     {settings['algorithm']} · reward {grader.get('type')} {escape(str(grader.get('name', '')))}"
    ended = f" · ended {_time(job['finished_at'])}" if job["finished_at"] else ""
    yield f"created    {_time(job['created_at'])}{ended}"
    if job["fine_tuned_model"]:
        yield f"trained    [bold]{escape(job['fine_tuned_model'])}[/]"
    if job["error"]:
        yield f"[red]error      {_coded(job['error'])}[/]"
    if job["paused_by"]:
        yield f"[yellow]paused     {_coded(job['paused_by'])}, at {_time(job['paused_by']['time'])}[/]"
    elif job["status"] == "paused":
        yield "[yellow]paused     by its user[/]"


def _tail(checkpoints: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> Iterable[str]:
    if checkpoints:
        yield "[dim]checkpoints[/]"
    for saved in checkpoints:
        reward = saved["metrics"].get("full_valid_mean_reward", saved["metrics"].get("train_mean_reward"))
        yield f"  step {saved['step_number']:<6} {saved['id']}  reward {decimal(reward, 3)}"
    if events:
        yield "[dim]said last[/]"
    for event in reversed(events):
        yield f"  [dim]{_time(event['created_at'])} {event['level']:5}[/] {escape(event['message'])}"


def _coded(reason: dict[str, Any]) -> str:
    return f"{reason['code']}: {escape(reason['message'])}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%m-%d %H:%M:%S")
