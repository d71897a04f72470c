"""`headrace keys`: API keys of the service on this machine, by its Redis and not through its gateway, so that the first
key needs none. Anyone who can read the data folder may create keys."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape

from headrace_core.errors import InvalidRequest

from ..scopes import NAME, Scope
from .common import err, out, service_settings
from .tables import Column, print_list

if TYPE_CHECKING:
    from ..auth.api_keys import ApiKey, KeyStore

keys = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Create, list and revoke API keys of the service on this machine."
)

_UNITS = {"m": 60, "h": 3600, "d": 86_400}
_MAX_DAYS = 3660
_T = TypeVar("_T")

DataDir = Annotated[Path | None, typer.Option(help="The service's data folder. [default: headrace-data]")]
RedisUrl = Annotated[str | None, typer.Option(help="The service's Redis, if it is your own. [default: embedded]")]


@keys.command()
def create(
    name: Annotated[str, typer.Option(help="Name of the key's owner; jobs and files belong to names.")],
    scope: Annotated[Scope, typer.Option(help="user: sees its own jobs and files; admin: sees everything.")] = "user",
    expires_in: Annotated[str | None, typer.Option(help="Lifetime, such as 12h or 90d. [default: unlimited]")] = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Create a key and print it. The key is never shown again."""
    if not re.fullmatch(NAME, name):
        raise InvalidRequest(f"--name: {name!r} is not a name of letters, digits and . _ @ -, 64 at most")
    seconds = None if expires_in is None else _seconds(expires_in)
    key, secret = _with_keys(data_dir, redis_url, lambda store: store.create(name, scope, seconds))
    until = "" if key.expires_at is None else f", until {_day(key.expires_at)}"
    err.print(f"[dim]key {key.id} of {escape(name)}, scope {scope}{until}; keep it, it is not shown again:[/]")
    typer.echo(secret)  # alone on standard output, for KEY=$(headrace keys create …)


@keys.command("list")
def list_keys(data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """List all keys, newest first."""
    listed = _with_keys(data_dir, redis_url, lambda store: store.all())
    columns = [Column("key"), Column("name", folds=True), *map(Column, ("scope", "expires", "last used", "state"))]
    rows = [
        (key.id, escape(key.name), key.scope, _day(key.expires_at), _day(key.last_used_at), _state(key))
        for key in listed
    ]
    print_list(out, columns, rows)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, key_…", show_default=False)],
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Revoke a key. The key and its sessions are refused from the next request on."""
    revoked, _ = _with_keys(data_dir, redis_url, lambda store: store.revoke(key))
    out.print(f"{revoked.id} of {escape(revoked.name)} is revoked")


def _with_keys(data_dir: Path | None, redis_url: str | None, act: Callable[[KeyStore], Awaitable[_T]]) -> _T:
    from headrace_core.redis_access.client import connect_for_requests, ping

    from ..auth.api_keys import KeyStore
    from ..service import redis_lookup

    given = {"data_dir": data_dir, "redis_url": redis_url}
    settings = service_settings(**{name: value for name, value in given.items() if value is not None})

    async def run(address: str) -> _T:
        redis = connect_for_requests(address)
        try:
            await ping(redis)
            return await act(KeyStore(redis))
        finally:
            await redis.aclose()

    with redis_lookup.reached(settings) as address:
        return asyncio.run(run(address))


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text)
    if match is None or (seconds := int(match[1]) * _UNITS[match[2]]) > _MAX_DAYS * _UNITS["d"]:
        raise InvalidRequest(f"--expires-in: {text!r} is no time like 30m, 12h or 90d, of ten years at most")
    return seconds


def _day(seconds: float | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds).date().isoformat()


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "[red]revoked[/]"
    return "[green]valid[/]" if key.rejection(time.time()) is None else "[yellow]expired[/]"
