"""`headrace jobs`: jobs as lists, pages and live, and what can be done to one."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from headrace_core.errors import InvalidRequest
from headrace_core.number_text import decimal

from ..client import Client
from .common import LOCAL, AsJson, JobId, Url, err, fail, out, print_json
from .export import export_job
from .job_page import page
from .job_summary import of_its_bound, spark
from .live_view import follow
from .tables import Column, print_list

jobs = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, follow, change and end jobs.")

STATUS_CODES = {"succeeded": 0, "failed": 1, "cancelled": 3, "paused": 4}
"""Exit codes of the commands that follow a job until it ends or pauses."""

_STEPS_SHOWN = 40
_WIDE = 140
"""Width of a terminal, in columns, from which on the list of jobs shows trends."""

Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Hyperparameters, such as max_staleness=2.")
]


@jobs.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Number of jobs.")] = 20,
    as_json: AsJson = False,
    url: Url = LOCAL,
) -> None:
    """List jobs with their progress, newest first."""
    with Client(url) as client:
        overview = client.overview(limit)
    if as_json:
        return print_json(overview)
    wide = out.width >= _WIDE
    names = ("job", "status", "steps", "reward", "age", *(("trend", "created") if wide else ()))
    print_list(out, [*map(Column, names), Column("model", folds=True)], [_row(job, wide) for job in overview])


@jobs.command()
def show(job_id: JobId, as_json: AsJson = False, url: Url = LOCAL) -> None:
    """Show one job on a page: progress, figures, ledger, checkpoints and newest events."""
    with Client(url) as client:
        job, ledger = client.job(job_id), client.job(job_id, "/ledger")
        if as_json:
            return print_json(job | {"ledger": ledger})
        since = max(1, ledger["version"] - _STEPS_SHOWN + 1)
        entries = client.job(job_id, "/metrics", kind="evaluation", limit=10_000)["data"]
        entries += client.job(job_id, "/metrics", from_step=since, limit=10_000)["data"]
        checkpoints = client.job(job_id, "/checkpoints", limit=5)["data"]
        events = client.job(job_id, "/events", limit=8)["data"]
    out.print(page(job, ledger, entries, checkpoints, events), soft_wrap=not out.is_terminal)


@jobs.command()
def watch(job_id: JobId, url: Url = LOCAL) -> None:
    """Show a job live until it ends or pauses: progress, reward, ages against the bound, ledger, workers.

    Exit code 0 if it succeeded, 1 if it failed, 3 if it was cancelled, 4 if it is paused. Ctrl-C does not end the job.
    """
    with Client(url) as client:
        watched(client, job_id)


@jobs.command()
def cancel(job_id: JobId, url: Url = LOCAL) -> None:
    """End a job. Its checkpoints stay."""
    with Client(url) as client:
        out.print(f"{job_id} is {client.change(job_id, 'cancel')['status']}")


@jobs.command()
def pause(job_id: JobId, url: Url = LOCAL) -> None:
    """Stop a job after a checkpoint of its last step."""
    with Client(url) as client:
        out.print(f"{job_id} is {client.change(job_id, 'pause')['status']}")


@jobs.command()
def resume(job_id: JobId, url: Url = LOCAL) -> None:
    """Continue a paused job."""
    with Client(url) as client:
        out.print(f"{job_id} is {client.change(job_id, 'resume')['status']}")


@jobs.command()
def fork(
    job_id: JobId,
    changes: Changes = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Id of the checkpoint, ftckpt_…  [default: the newest]")
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="Suffix in the names of the new job's models.")] = None,
    follow_it: Annotated[bool, typer.Option("--follow/--no-follow", help="Follow the new job until it ends.")] = True,
    url: Url = LOCAL,
) -> None:
    """Start a new job from a checkpoint of another one, with some hyperparameters changed."""
    body: dict[str, Any] = {"checkpoint": checkpoint, "hyperparameters": _parsed(changes)}
    if suffix is not None:
        body["suffix"] = suffix
    with Client(url) as client:
        made = client.fork(job_id, body)
        origin = made["forked_from"]
        out.print(f"job [bold]{made['id']}[/], from step {origin['step_number']} of {job_id}")
        if follow_it:
            watched(client, made["id"])


@jobs.command("set")
def set_(job_id: JobId, changes: Changes = None, as_json: AsJson = False, url: Url = LOCAL) -> None:
    """Change settings of a running job; without any, show the settings and every change so far."""
    given = _parsed(changes)
    with Client(url) as client:
        answer = client.set(job_id, given) if given else client.job(job_id, "/settings")
    if as_json:
        return print_json(answer)
    for name in answer["changeable"]:
        out.print(f"{name:24} {answer['settings'][name]}", highlight=False)
    for change in answer["changes"]:
        at = datetime.fromtimestamp(change["time"]).strftime("%m-%d %H:%M:%S")
        what = f"{change['name']} {change['before']} → {change['after']} from version {change['from_version']}"
        out.print(f"[dim]{at}[/] {escape(what)} [dim]by {escape(change['by'])}[/]", highlight=False)


@jobs.command()
def logs(
    job_id: JobId,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Number of the newest events.")] = 50,
    follow_it: Annotated[
        bool, typer.Option("--follow", "-f", help="Print all events, then new ones until the job ends.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")] = False,
    url: Url = LOCAL,
) -> None:
    """Print a job's events, oldest first."""
    with Client(url) as client:
        events = client.events(job_id) if follow_it else reversed(client.job(job_id, "/events", limit=limit)["data"])
        for event in events:
            if as_json:
                out.print(json.dumps(event), markup=False, highlight=False)
            else:
                at = datetime.fromtimestamp(event["created_at"]).time()
                out.print(f"[dim]{at} {event['level']:5}[/] {escape(event['message'])}")


jobs.command("export")(export_job)


def watched(client: Client, job_id: str) -> NoReturn:
    """Follow a job to its end or its pause, then end the process with its status."""
    try:
        job = follow(out, client.stream(job_id))
    except KeyboardInterrupt:
        err.print(f"[dim]the job goes on; `headrace jobs watch {job_id}` shows it again[/]")
        raise typer.Exit(130) from None
    if job["status"] != "succeeded":
        verb = {"cancelled": "was ", "paused": "is "}.get(job["status"], "")
        fail(f"the job {verb}{job['status']}{_reason(job)}", STATUS_CODES[job["status"]])
    out.print(f"[green]succeeded[/]: trained model [bold]{job['fine_tuned_model']}[/]")
    raise typer.Exit(0)


def _row(job: dict[str, Any], wide: bool) -> list[str]:
    created = datetime.fromtimestamp(job["created_at"]).strftime("%m-%d %H:%M")
    return [
        job["id"],
        job["status"],
        f"{'?' if job['step'] is None else job['step']}/{job['total_steps']}",
        decimal(job["reward_mean"], 3),
        of_its_bound(job, job["max_staleness"]),
        *((spark(job["spark"]["reward"]), created) if wide else ()),
        escape(job["model"] + (f" {job['suffix']}" if job["suffix"] else "")),
    ]


def _reason(job: dict[str, Any]) -> str:
    if job["status"] == "paused":
        by_itself = job["paused_by"]
        why = f": {by_itself['message']}" if by_itself else ""
        return f"{why}; `headrace jobs resume {job['id']}` lets it go on, `headrace jobs watch {job['id']}` shows it"
    return f": {job['error']['message']}" if job["error"] else ""


def _parsed(changes: list[str] | None) -> dict[str, Any]:
    """Parse arguments of the form `name=value`; a value is JSON if it can be parsed as such, else text."""
    values: dict[str, Any] = {}
    for change in changes or ():
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"{change!r}: write a change as NAME=VALUE, such as max_staleness=2")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values
