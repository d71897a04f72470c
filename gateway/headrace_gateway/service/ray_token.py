"""The token that the embedded Ray requires from every client. It is created here, because Ray would create a file that
every user of the machine can read.

Ray requires a token by default (`RAY_AUTH_MODE`), and reads it from `RAY_AUTH_TOKEN`, the file `RAY_AUTH_TOKEN_PATH`,
or `~/.ray/auth_token`. This module creates that file before Ray does, readable only by its user; an existing file is
closed to others. A file of another user is refused, because its owner can read it. Root's file is accepted if nobody
else can read it, because root can read everything anyway.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from headrace_core.errors import Unavailable

_BYTES = 32


def keep_private() -> None:
    """Ensure that the token exists and that only this user can read it. Raises `Unavailable`."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or "RAY_AUTH_TOKEN" in os.environ:
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        path = Path.home() / ".ray" / "auth_token" if named is None else Path(named)
        if path.exists():
            _close_to_others(path)
        elif named is None:
            _make(path)
    except (OSError, RuntimeError) as error:  # a user without a home folder is a RuntimeError
        raise Unavailable(
            f"the token of the embedded Ray cannot be kept private ({error}): set HOME to a folder that this user "
            "owns, or RAY_AUTH_TOKEN_PATH to a file that holds a token"
        ) from error


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    written = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(_BYTES))
    try:
        os.link(written, path)  # if two services start at once, the first one's token is used
    except FileExistsError:
        _close_to_others(path)
    finally:
        written.unlink()


def _close_to_others(path: Path) -> None:
    status = path.stat()
    if status.st_uid == os.getuid():
        if status.st_mode & 0o077:
            path.chmod(0o600)
    elif status.st_uid != 0 or status.st_mode & 0o007:
        raise PermissionError(f"{path} belongs to user {status.st_uid}, and others can read it")
