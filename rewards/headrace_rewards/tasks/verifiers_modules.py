"""Finds the installed module of a verifiers environment by its name, without importing it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from headrace_core.errors import InvalidRequest


def module_of(name: str) -> Path:
    """The file or folder of the module, by the library's rule: `acme/word-sort` is the module `word_sort`.

    Raises `InvalidRequest` if no such module is installed.
    """
    module = name.rpartition("/")[2].replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or spec.origin is None:
        raise InvalidRequest(f"no environment {name!r} is installed: there is no module {module!r}")
    origin = Path(spec.origin)
    return origin.parent if spec.submodule_search_locations else origin
