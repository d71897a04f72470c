"""`headrace`: the commands. All but `serve`, `keys`, `rewards` and `doctor` speak to a gateway by HTTP."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from headrace_core.errors import HeadraceError
from headrace_core.settings import Settings

from . import job_file, rewards_process
from .cli_checkpoints import checkpoints
from .cli_common import LOCAL, Url, err, fail, out, service_settings
from .cli_doctor import doctor
from .cli_jobs import jobs, watched
from .cli_keys import keys
from .cli_rewards import rewards
from .client import Client

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they hold API keys
    help="RL post-training of language models, as a service.",
)
app.add_typer(jobs, name="jobs")
app.add_typer(checkpoints, name="checkpoints")
app.add_typer(rewards, name="rewards")
app.add_typer(keys, name="keys")
app.command()(doctor)


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
    settings = service_settings(**given)
    held = asyncio.run(rewards_process.sandbox(settings.reward_sandbox))
    out.print(f"[dim]sandbox of reward code: {escape(held)}[/]")
    out.print("[dim]starting Redis and Ray …[/]")
    try:
        run(settings, lambda url, enterable: _announce(settings, url, enterable))
    except KeyboardInterrupt:
        fail("stopped while starting")
    out.print("[dim]stopped; unfinished jobs go on at the next start[/]")


def _announce(settings: Settings, url: str, enterable: bool) -> None:
    out.print(f"Headrace runs at [bold]{url}[/] [dim](Ctrl-C stops it)[/]")
    if not enterable:
        # A Redis address is not repeated: it may hold a password.
        where = "--redis-url …" if settings.redis_url else f"--data-dir {settings.data_dir}"
        out.print(
            "[yellow]It answers nobody without an API key, and there is none yet.[/] Make one, on this machine:\n"
            f"  headrace keys create --name you --scope admin {escape(where)}",
            soft_wrap=True,
        )


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
            watched(client, made["id"])
