"""What every group of commands shares: where lines go, how the gateway is named, how a command fails."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from headrace_core.errors import InvalidRequest
from headrace_core.redis_address import masked
from headrace_core.settings import Settings

LOCAL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(envvar="HEADRACE_URL", help="Address of the gateway.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, ftjob-…", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON, for programs.")]

out = Console()
err = Console(stderr=True)


def fail(message: str, status: int = 1) -> NoReturn:
    """One line on the error stream, and the process ends with `status`."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(status)


def print_json(value: Any) -> None:
    """For programs: indented on a terminal and elsewhere, never wrapped."""
    out.print_json(data=value)


def service_settings(**given: Any) -> Settings:
    """The service's, of the environment where they are not given. Raises `InvalidRequest`."""
    if (url := given.get("redis_url")) is not None and masked(url) != url:
        raise InvalidRequest(
            "a password in an option is shown to every user of this machine by `ps`: put it into a file, and name that "
            "in HEADRACE_REDIS_PASSWORD_FILE",
            param="redis_url",
        )
    try:
        return Settings(**given)
    except ValidationError as errors:
        first = errors.errors()[0]
        raise InvalidRequest(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from errors
