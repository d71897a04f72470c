"""Finds this machine's Redis for commands that use it directly: the external one, the one that a running server
started, or else one that is started for the duration of the command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidState, Unavailable

from . import data_folder_lock
from .embedded_redis import RedisServer, running


@contextmanager
def reached(settings: Settings) -> Iterator[str]:
    """The address of Redis. Raises `Unavailable` if it does not start, or a server has not started it yet."""
    if (own := settings.redis_address) is not None:
        yield own
        return
    folder = settings.data_dir.absolute() / "redis"
    if not folder.is_dir():  # a folder with a mistyped name must not be created
        raise Unavailable(
            f"{settings.data_dir} is no data folder of a service: name it with --data-dir or HEADRACE_DATA_DIR; a new "
            "one is made by `headrace serve`"
        )
    with ExitStack() as parts:
        try:
            parts.enter_context(data_folder_lock.held(settings.data_dir))
        except InvalidState:  # a server uses the folder, and runs Redis
            address = running(folder)
        else:
            server = RedisServer(folder, settings.start_timeout, program=settings.redis_server)
            parts.callback(server.stop)
            server.start()
            address = server.url
        yield address
