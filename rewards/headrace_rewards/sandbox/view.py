"""Which files a contained function may read: the interpreter, the system's programs and libraries, and its own folder.

A list of what is open. What it does not name (the home folder, the service's data folder, other users' files, /var,
most of /etc) does not exist for the function in a mount namespace, and is refused by Landlock.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from headrace_rewards.sandbox.kernel import Unheld

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys/devices/system/cpu")
_OF_ETC = (
    *("alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types"),
    *("nsswitch.conf", "passwd", "ssl/certs", "ssl/openssl.cnf", "timezone"),
)
_MOST_ENTRIES = 1_000
"""Of a folder that is opened entry by entry."""


def secrets_of_home(home: Path) -> list[Path]:
    """What is hidden even from a function that lies in the home folder itself: entries that begin with a dot.

    None where `home` is not absolute: the service's user has no home then.
    """
    return sorted(home.glob(".*")) if home.is_absolute() else []


class View(NamedTuple):
    """Existing paths."""

    readable: list[Path]
    """None of them below another."""
    listed: list[Path]
    """Folders of which only parts are readable: imports list them."""


def of(own: Path | None, hidden: Iterable[Path]) -> View:
    """For a function in the file `own`, or in no file.

    `hidden` stays out of its folder, and out of those on the import path: a project that is installed where it is
    written may have the service's data in it. Raises `Unheld` for a folder that would have to be opened in too many
    pieces.
    """
    secret = {path.resolve() for path in hidden}
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
    """Add it to the view: whole, or entry by entry where something hidden lies below it."""
    real = folder.resolve()
    if not any(secret.is_relative_to(real) for secret in hidden):
        view.readable.append(folder)
        return
    view.listed.append(folder)
    try:
        entries = sorted(folder.iterdir())
    except OSError as fault:
        raise Unheld(f"{folder} cannot be read: {fault.strerror}") from None
    if len(entries) > _MOST_ENTRIES:
        raise Unheld(f"{folder} has {len(entries)} entries beside those hidden; give the function a folder of its own")
    for entry in entries:
        target = entry.resolve()
        if any(target.is_relative_to(secret) for secret in hidden):
            continue
        if target.is_dir() and not entry.is_symlink():
            _open(entry, hidden, view)
        elif target.is_file():
            view.readable.append(entry)
