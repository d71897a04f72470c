"""Imports of files as they were kept, under the paths where they lay: see `headrace_rewards.reward_code`.

`__file__`, tracebacks and what the code opens beside itself are those of the original place; the text is the copy's,
also where the file there has changed or gone. Runs in the host process only.
"""

from __future__ import annotations

import importlib.util
import linecache
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType


class KeptLoader(SourceFileLoader):
    """Loads one file from memory."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source
        text = importlib.util.decode_source(source) if _is_text(source) else ""
        linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)  # for tracebacks

    def get_data(self, path: str) -> bytes:
        """The kept source; nothing else is read by it."""
        return self._source

    def path_stats(self, path: str) -> Mapping[str, int]:
        """None: byte code beside the original is of another text, perhaps."""
        raise OSError("kept in memory")


class KeptFinder:
    """Finds the kept files before the path is searched. `files`: by absolute path."""

    def __init__(self, files: Mapping[str, bytes], folder: Path) -> None:
        self._files = files
        self._folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of a module or package among the kept files."""
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
    """For `importlib`; `folders` of a package."""
    loader = KeptLoader(name, path, source)
    return importlib.util.spec_from_file_location(name, path, loader=loader, submodule_search_locations=folders)


def install(files: Mapping[str, bytes], folder: Path) -> None:
    """From now on the kept files are imported in place of those in `folder`."""
    sys.meta_path.insert(sys.meta_path.index(PathFinder), KeptFinder(files, folder))


def _is_text(source: bytes) -> bool:
    try:
        importlib.util.decode_source(source)
    except (SyntaxError, UnicodeDecodeError):  # importing it says so
        return False
    return True
