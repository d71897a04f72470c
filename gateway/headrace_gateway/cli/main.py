"""`headrace`: the commands. All but `serve`, `keys`, `rewards`, `plan` and `doctor` speak to a gateway by HTTP.

A command's module is imported when the command is asked for: together they take a second of imports.
"""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.markup import escape
from typer.core import TyperGroup
from typer.main import get_command

from headrace_core.errors import HeadraceError

from .common import LOCAL, Url, err, fail, out, service_settings

if TYPE_CHECKING:
    from headrace_core.config.service_settings import Settings

SUBCOMMANDS = {
    "jobs": "jobs:jobs",
    "checkpoints": "checkpoints:checkpoints",
    "rewards": "rewards:rewards",
    "keys": "keys:keys",
    "plan": "plan:command",
    "doctor": "doctor:command",
}
"""Commands of other modules: where each one's Typer is."""


class _Commands(TyperGroup):
    """The commands of this module, and those of `SUBCOMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of help."""
        return [*self.commands, *SUBCOMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import it, if it is another module's."""
        if (place := SUBCOMMANDS.get(cmd_name)) is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = place.partition(":")
        command: Any = get_command(getattr(importlib.import_module(f".{module}", __package__), name))
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich takes a default in brackets for markup, and keeps the docstrings' line ends
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,  # they hold API keys
    help="RL post-training of language models, as a service.",
)


def main() -> NoReturn:
    """Entry point: errors that the user can correct are one line, without a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal lacks would be a traceback
    try:
        app(standalone_mode=True)
    except HeadraceError as error:
        err.print(f"[bold red]error:[/] {escape(error.message)}")
    sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and exit.")
    ] = False,
) -> None:
    """RL post-training of language models, as a service."""


@app.command()
def serve(
    port: Annotated[int | None, typer.Option(help="Port of the gateway; 0 takes a free one. [default: 8000]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for all data. [default: headrace-data]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    redis_url: Annotated[str | None, typer.Option(help="A Redis of your own. [default: embedded]")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster of your own. [default: local]")] = None,
    models_dir: Annotated[Path | None, typer.Option(help="Folder of models to offer by name.")] = None,
) -> None:
    """Start everything on this machine: Redis, Ray, gateway and dashboard.

    Ctrl-C stops everything; unfinished jobs continue at the next start. Every setting can also be given as an
    environment variable HEADRACE_…; see docs/settings.md.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    settings = service_settings(**given)
    import asyncio

    from ..limited_processes import json_process
    from ..service.serve import serve as run

    asyncio.run(json_process.claim_control_groups())
    held = asyncio.run(json_process.sandbox(settings.reward_sandbox))
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
        )


@app.command()
def train(
    job: Annotated[Path, typer.Argument(help="The job file, in TOML.")],
    url: Url = LOCAL,
    follow_it: Annotated[bool, typer.Option("--follow/--no-follow", help="Follow the job until it ends.")] = True,
) -> None:
    """Upload the files of a job, submit the job and follow it.

    Exit code 0 if the job succeeds, 1 if it fails, 3 if it is cancelled, 4 if it pauses: by itself, because it cannot
    continue, or because somebody paused it.
    """
    from ..client import Client
    from . import job_file
    from .jobs import watched

    request = job_file.read(job)
    with Client(url) as client:
        ids = {name: client.upload(path) for name, path in request.uploads.items()}
        made = client.create(request.body | ids)
        out.print(f"job [bold]{made['id']}[/] · [link={url}/jobs/{made['id']}]{url}/jobs/{made['id']}[/link]")
        if follow_it:
            watched(client, made["id"])
