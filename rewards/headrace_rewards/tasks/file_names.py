"""Rejects a library's parameters that name files: the library would open them for the author of the request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from headrace_core.errors import InvalidRequest

_NAMES_A_FILE = re.compile(r"(^|_)(file|files|filename|path|paths|dir|directory|folder)$")
_PATH = re.compile(r"/.|~|[a-zA-Z]:[\\/]|file:|(.*/)?\.\.(/|$)", re.DOTALL | re.IGNORECASE)


def reject_paths(parameters: Mapping[str, Any], of: str) -> None:
    """Raises `InvalidRequest` for a value, at any depth, that is an absolute path, starts at home, or goes upwards."""
    for name, value in parameters.items():
        if _contains_path(value):
            raise InvalidRequest(
                f"{of}: {name!r} names a file of the service's machine, which is not read; leave it out"
            )


def reject_file_parameters(parameters: Mapping[str, Any], of: str) -> None:
    """Raises `InvalidRequest` for a parameter whose name is one for a file, whatever its value."""
    for name in parameters:
        if _NAMES_A_FILE.search(name):
            raise InvalidRequest(
                f"{of}: {name!r} is for a file of the service's machine, which is not read; leave it out"
            )


def _contains_path(value: Any) -> bool:
    """Whether a value holds a path. Not recursive, since the value may be nested deeper than Python's stack allows."""
    unvisited = [value]
    while unvisited:
        value = unvisited.pop()
        if isinstance(value, str) and _PATH.match(value.strip()):
            return True
        if isinstance(value, Mapping):
            unvisited += [*value, *value.values()]
        elif isinstance(value, list):
            unvisited += value
    return False
