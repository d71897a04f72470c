"""Code that all commands share: output, options such as the gateway's address, error handling."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from headrace_core.errors import InvalidRequest
from headrace_core.redis_address import masked

if TYPE_CHECKING:
    from headrace_core.config.service_settings import Settings

PREFIX = "HEADRACE_"
_OF_CLIENTS = {"HEADRACE_URL", "HEADRACE_API_KEY"}
"""Environment variables of the commands that use a gateway."""
LOCAL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(envvar="HEADRACE_URL", help="Address of the gateway.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, ftjob-…", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

out = Console(soft_wrap=True)  # a line stays a line: the terminal breaks it, and a program that reads it finds it whole
err = Console(stderr=True, soft_wrap=True)


def fail(message: str, status: int = 1) -> NoReturn:
    """Print one line to stderr, and exit with `status`."""
    err.print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(status)


def print_json(value: Any) -> None:
    """Print JSON for programs: always indented, never wrapped."""
    out.print_json(data=value)


def service_settings(**given: Any) -> Settings:
    """The service's settings: `given`, and the rest from the environment. Raises `InvalidRequest`."""
    if (url := given.get("redis_url")) is not None and masked(url) != url:
        raise InvalidRequest(
            "a password in an option is shown to every user of this machine by `ps`: put it into a file, and name that "
            "in HEADRACE_REDIS_PASSWORD_FILE",
            param="redis_url",
        )
    from pydantic import ValidationError  # with the settings, most of the time that a command takes to begin

    from headrace_core.config.service_settings import Settings

    _check_names(Settings.model_fields)
    try:
        return Settings(**given)
    except ValidationError as errors:
        first = errors.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        where = f"--{name.replace('_', '-')}" if name in given else f"{PREFIX}{name.upper()}"
        raise InvalidRequest(f"{where}: {first['msg'].removeprefix('Value error, ')}", param=name) from errors
    except ValueError as error:  # of pydantic-settings: a list that is not JSON
        raise InvalidRequest(f"the environment: {error}: lists are written as JSON") from error


def _check_names(fields: Iterable[str]) -> None:
    """Raises `InvalidRequest` for a variable of the service that no setting reads."""
    known = {f"{PREFIX}{name.upper()}" for name in fields} | _OF_CLIENTS
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InvalidRequest(
                f"{name}: there is no such setting: {hint}docs/settings.md has them all; unset the variable", param=name
            )
