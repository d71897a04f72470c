"""`headrace`: serve, train, jobs, rewards. `train` and `jobs` speak to a gateway by HTTP."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headrace_core.errors import HeadraceError
from headrace_core.settings import Settings

from . import job_file, rewards_process
from .cli_rewards import rewards
from .client import Client
from .following import follow

app = typer.Typer(no_args_is_help=True, add_completion=False, help="RL post-training of language models, as a service.")
jobs = typer.Typer(no_args_is_help=True, help="Look at jobs, pause and cancel them.")
app.add_typer(jobs, name="jobs")
app.add_typer(rewards, name="rewards")

out = Console()
err = Console(stderr=True)

Url = Annotated[str, typer.Option(envvar="HEADRACE_URL", help="Address of the gateway.")]
LOCAL = "http://127.0.0.1:8000"


def main() -> NoReturn:
    """Entry point: errors that the user can mend are one line, without a traceback."""
    try:
        app(standalone_mode=True)
    except HeadraceError as error:
        err.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
    sys.exit(1)


@app.command()
def serve(
    port: Annotated[int | None, typer.Option(help="Port of the gateway; 0 takes a free one. [default: 8000]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept. [default: headrace-data]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    redis_url: Annotated[str | None, typer.Option(help="A Redis of your own. [default: embedded]")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster of your own. [default: local]")] = None,
    models_dir: Annotated[Path | None, typer.Option(help="Folder of models to offer by name.")] = None,
) -> None:
    """Start everything on this machine: Redis, Ray, gateway and dashboard.

    Ctrl-C stops it; unfinished jobs go on at the next start. Every setting can also be given as an environment variable
    HEADRACE_…; see docs/settings.md.
    """
    from .serve import serve as run

    given = {k: v for k, v in locals().items() if k != "run" and v is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        _fail(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    held = asyncio.run(rewards_process.sandbox(settings.reward_sandbox))
    out.print(f"[dim]sandbox of reward code: {escape(held)}[/]")
    out.print("[dim]starting Redis and Ray …[/]")
    try:
        run(settings, lambda url: out.print(f"Headrace runs at [bold]{url}[/] [dim](Ctrl-C stops it)[/]"))
    except KeyboardInterrupt:
        _fail("stopped while starting")
    out.print("[dim]stopped; unfinished jobs go on at the next start[/]")


@app.command()
def train(
    job: Annotated[Path, typer.Argument(help="The job file, in TOML.")],
    url: Url = LOCAL,
    follow_it: Annotated[bool, typer.Option("--follow/--no-follow", help="Stay and show how the job goes.")] = True,
) -> None:
    """Upload the files of a job, submit it, follow it. Exit code 0 if it succeeds."""
    told = job_file.read(job)
    with Client(url) as client:
        ids = {name: client.upload(path) for name, path in told.uploads.items()}
        made = client.create(told.body | ids)
        out.print(f"job [bold]{made['id']}[/] · [link={url}/jobs/{made['id']}]{url}/jobs/{made['id']}[/link]")
        if follow_it:
            _end(follow(out, client.stream(made["id"])))


@jobs.command("list")
def list_jobs(limit: Annotated[int, typer.Option(min=1, max=100)] = 20, url: Url = LOCAL) -> None:
    """Jobs, newest first."""
    table = Table(box=None)
    table.add_column("job", no_wrap=True, min_width=len("ftjob-") + 24)  # an id that is cut is of no use
    for name in ("status", "model", "created", "trained model"):
        table.add_column(name, overflow="fold")
    with Client(url) as client:
        for job in client.jobs(limit):
            created = datetime.fromtimestamp(job["created_at"]).isoformat(" ")
            table.add_row(job["id"], job["status"], job["model"], created, job["fine_tuned_model"] or "")
    out.print(table)


@jobs.command()
def show(job_id: str, url: Url = LOCAL) -> None:
    """One job and its ledger, as JSON."""
    with Client(url) as client:
        out.print_json(data=client.job(job_id) | {"ledger": client.job(job_id, "/ledger")})


@jobs.command()
def cancel(job_id: str, url: Url = LOCAL) -> None:
    """End a job. Its checkpoints stay."""
    with Client(url) as client:
        out.print(f"{job_id} is {client.change(job_id, 'cancel')['status']}")


@jobs.command()
def pause(job_id: str, url: Url = LOCAL) -> None:
    """Stop a job after a checkpoint of its last step."""
    with Client(url) as client:
        out.print(f"{job_id} is {client.change(job_id, 'pause')['status']}")


@jobs.command()
def resume(job_id: str, url: Url = LOCAL) -> None:
    """Let a paused job go on."""
    with Client(url) as client:
        out.print(f"{job_id} is {client.change(job_id, 'resume')['status']}")


@jobs.command()
def events(job_id: str, limit: Annotated[int, typer.Option(min=1, max=1000)] = 50, url: Url = LOCAL) -> None:
    """What a job has said, oldest first."""
    with Client(url) as client:
        for event in reversed(client.job(job_id, "/events", limit=limit)["data"]):
            at = datetime.fromtimestamp(event["created_at"]).time()
            out.print(f"[dim]{at} {event['level']:5}[/] {escape(event['message'])}", soft_wrap=True)


def _end(job: dict[str, Any]) -> None:
    if job["status"] != "succeeded":
        reason = f": {job['error']['message']}" if job["error"] else ""
        _fail(f"the job {job['status']}{reason}")
    out.print(f"[green]succeeded[/]: trained model [bold]{job['fine_tuned_model']}[/]")


def _fail(message: str) -> NoReturn:
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(1)
