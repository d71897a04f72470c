"""Parameters of a library that name files: refused, since the library would open them for whoever wrote the request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from headrace_core.errors import InvalidRequest

_NAMES_A_FILE = re.compile(r"(^|_)(file|files|filename|path|paths|dir|directory|folder)$")
_A_PLACE = re.compile(r"/.|~|[a-zA-Z]:[\\/]|file:|(.*/)?\.\.(/|$)", re.DOTALL | re.IGNORECASE)


def refuse_places(parameters: Mapping[str, Any], of: str) -> None:
    """Raises `InvalidRequest` for a value, however deep, that is a path from the root, from home, or upwards."""
    for name, value in parameters.items():
        if _is_place(value):
            raise InvalidRequest(
                f"{of}: {name!r} names a file of the service's machine, which is not read; leave it out"
            )


def refuse_file_parameters(parameters: Mapping[str, Any], of: str) -> None:
    """Raises `InvalidRequest` for a parameter that is called like one for a file, whatever its value."""
    for name in parameters:
        if _NAMES_A_FILE.search(name):
            raise InvalidRequest(
                f"{of}: {name!r} is for a file of the service's machine, which is not read; leave it out"
            )


def _is_place(value: Any) -> bool:
    """Without recursion: a value may be nested as deep as JSON is read."""
    open_values = [value]
    while open_values:
        value = open_values.pop()
        if isinstance(value, str) and _A_PLACE.match(value.strip()):
            return True
        if isinstance(value, Mapping):
            open_values += [*value, *value.values()]
        elif isinstance(value, list):
            open_values += value
    return False
