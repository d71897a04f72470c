"""Which files a contained function may read: the interpreter, the system's programs and libraries, and its own folder.

This is a list of readable paths. What it does not name (the home folder, the service's data folder, other users' files,
/var, most of /etc) does not exist for the function in a mount namespace, and is refused by Landlock.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from .syscalls import ContainmentFailed

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys/devices/system/cpu")
_OF_ETC = (
    *("alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types"),
    *("nsswitch.conf", "passwd", "ssl/certs", "ssl/openssl.cnf", "timezone"),
)
_MAX_ENTRIES = 1_000
"""Maximum entries of a folder that is opened entry by entry."""


class View(NamedTuple):
    """The paths that a contained process sees; all exist."""

    readable: list[Path]
    """Readable files and folders, none of them below another."""
    listed: list[Path]
    """Folders of which only parts are readable; they can be listed, because imports list them."""


def told(own: Path | None, hidden: Iterable[Path], home: Path) -> View:
    """The result of `of`, computed in a child process, so that no hidden name stays in this one's memory."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _send_paths(writer, own, hidden, home)
    os.close(writer)
    with os.fdopen(reader, "rb") as message:
        kind, *lists = message.read().split(b"\0\0")
    os.waitpid(pid, 0)
    if kind != b"view":
        raise ContainmentFailed(lists[0].decode("utf-8", "replace") if lists else "what it may read was not found out")
    return View(*([Path(os.fsdecode(path)) for path in paths.split(b"\0") if path] for paths in lists))


def _send_paths(channel: int, own: Path | None, hidden: Iterable[Path], home: Path) -> NoReturn:
    try:
        parts = [b"view", *(b"\0".join(map(os.fsencode, paths)) for paths in of(own, hidden, home))]
    except ContainmentFailed as fault:
        parts = [b"fault", str(fault).encode("utf-8", "replace")]
    try:
        with os.fdopen(channel, "wb") as message:
            message.write(b"\0\0".join(parts))
    finally:
        os._exit(0)


def of(own: Path | None, hidden: Iterable[Path], home: Path | None = None) -> View:
    """The view of a function in the file `own`, or in no file.

    `hidden` paths are excluded from its folder and from those on the import path: a project that is installed in place
    may have the service's data in it. So are the entries of `home` that begin with a dot, but not if `home` is no
    absolute path, because the service's user has no home then. Raises `ContainmentFailed` for a folder that would have
    to be opened in too many pieces.
    """
    dotted = [] if home is None or not home.is_absolute() else home.glob(".*")
    secret = {path.resolve() for path in (*hidden, *dotted)}
    view = View([Path(path) for path in (*_SYSTEM, *(f"/etc/{name}" for name in _OF_ETC))], [])
    for folder in _interpreter():
        if folder != Path("/"):
            _open(folder, secret, view)
    if own is not None:
        _open_own(own, secret, view)
    found = {path for path in view.readable if path.exists()}
    found |= {path.resolve() for path in found}
    return View(sorted(path for path in found if found.isdisjoint(path.parents)), view.listed)


def _interpreter() -> Iterator[Path]:
    yield from map(Path, (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix))
    yield Path(sys.executable).resolve().parent
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    yield from (Path(entry) for entry in (*sys.path, *libraries) if entry.startswith("/"))


def _open_own(file: Path, hidden: set[Path], view: View) -> None:
    folder = file.parent.resolve()
    if folder in hidden or folder == Path("/"):
        view.readable.append(file)
        return
    before = len(view.listed)
    _open(folder, hidden, view)
    if folder != file.parent:  # it is named through a symbolic link, and must be found under that name too
        view.readable.append(file if len(view.listed) > before else file.parent)


def _open(folder: Path, hidden: set[Path], view: View) -> None:
    """Add the folder to the view: whole, or entry by entry if something hidden is below it."""
    real = folder.resolve()
    if not any(secret.is_relative_to(real) for secret in hidden):
        view.readable.append(folder)
        return
    view.listed.append(folder)
    try:
        entries = sorted(folder.iterdir())
    except OSError as fault:
        raise ContainmentFailed(f"{folder} cannot be read: {fault.strerror}") from None
    if len(entries) > _MAX_ENTRIES:
        raise ContainmentFailed(
            f"{folder} has {len(entries)} entries beside those hidden; give the function a folder of its own"
        )
    for entry in entries:
        target = entry.resolve()
        if any(target.is_relative_to(secret) for secret in hidden):
            continue
        if target.is_dir() and not entry.is_symlink():
            _open(entry, hidden, view)
        elif target.is_file():
            view.readable.append(entry)
