"""Imports stored copies of Python files under their original paths: see `headrace_rewards.reward_code`.

`__file__`, tracebacks and data files beside the code refer to the original path. The source is the stored copy's, even
if the original file was changed or removed. Runs in the host process only.
"""

from __future__ import annotations

import importlib.util
import linecache
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType


class StoredSourceLoader(SourceFileLoader):
    """Loads one file from memory."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source
        text = importlib.util.decode_source(source) if _is_text(source) else ""
        linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)  # for tracebacks

    def get_data(self, path: str) -> bytes:
        """The stored source; the import system reads nothing else with this loader."""
        return self._source

    def path_stats(self, path: str) -> Mapping[str, int]:
        """Always raises `OSError`, so that no byte code beside the original file is used: it may be of another text."""
        raise OSError("kept in memory")


class StoredSourceFinder:
    """Import finder that serves the stored files before the import path is searched. `files`: by absolute path."""

    def __init__(self, files: Mapping[str, bytes], folder: Path) -> None:
        self._files = files
        self._folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module or package among the stored files; `None` for any other."""
        last = name.rpartition(".")[2]
        for folder in [str(self._folder)] if path is None else path:
            place = Path(folder) / last
            package, module = str(place / "__init__.py"), f"{place}.py"
            if package in self._files:
                return spec_of(name, package, self._files[package], [str(place)])
            if module in self._files:
                return spec_of(name, module, self._files[module])
            if any(file.startswith(f"{place}/") for file in self._files):  # a folder without __init__.py
                found = ModuleSpec(name, None, is_package=True)
                found.submodule_search_locations = [str(place)]
                return found
        return None


def spec_of(name: str, path: str, source: bytes, folders: list[str] | None = None) -> ModuleSpec | None:
    """The module spec of a stored file; `folders`: the search path of a package."""
    loader = StoredSourceLoader(name, path, source)
    return importlib.util.spec_from_file_location(name, path, loader=loader, submodule_search_locations=folders)


def install(files: Mapping[str, bytes], folder: Path) -> None:
    """Import the stored files in place of those in `folder` from now on."""
    sys.meta_path.insert(sys.meta_path.index(PathFinder), StoredSourceFinder(files, folder))


def _is_text(source: bytes) -> bool:
    try:
        importlib.util.decode_source(source)
    except (SyntaxError, UnicodeDecodeError):  # importing it raises the error
        return False
    return True
