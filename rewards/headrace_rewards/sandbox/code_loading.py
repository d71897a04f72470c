"""Loads a user's function from a file, an installed module or source text. Runs in the host process, and in processes
that `multiprocessing` spawns for it, where the user's module is found by its name."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from . import frames, kept_sources

_MODULE_VARIABLE = "HEADRACE_USER_MODULE"
"""Environment variable with the name and file of the user's module, for spawned processes."""
_SOURCE_FILE = ".headrace_user_source.py"


class CodeLoadError(Exception):
    """The code cannot be loaded. The message names the file and, if known, the line; `cause` is the original error."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.cause = cause


def load(setup: frames.Setup) -> Callable[..., Any]:
    """The function that `setup` names. A file can import the modules beside it. Raises `CodeLoadError`.

    A function of a file must be defined in that file: permission to name a function in it does not include what it
    imports.
    """
    where, name = setup.module or setup.path, setup.function
    module = _module(setup, where)
    of_a_file = setup.module is None and setup.source is None
    own = {key: value for key, value in vars(module).items() if not of_a_file or _is_defined_in(module, value)}
    try:
        function = getattr(module, name)
    except AttributeError as missing:
        found = [key for key, value in own.items() if callable(value) and not key.startswith("_")]
        raise CodeLoadError(f"{where} has no '{name}'; it has: {', '.join(found) or 'no function'}", missing) from None
    if not callable(function) or isinstance(function, type):
        kind = type(function).__name__
        raise CodeLoadError(f"'{name}' in {where} is not a function but of type {kind}", TypeError(kind))
    if of_a_file and name not in own:
        fault = f"{where} imports '{name}' from elsewhere; name a function that the file defines, which may call it"
        raise CodeLoadError(fault, ImportError(fault))
    return function


def _is_defined_in(module: ModuleType, function: Any) -> bool:
    """Whether the function is defined in the module; for a callable object, its class; for a partial, its function."""
    if isinstance(function, functools.partial):
        return _is_defined_in(module, function.func)
    return getattr(function, "__module__", None) == module.__name__


def _module(setup: frames.Setup, where: str) -> ModuleType:
    if setup.source is not None:
        return _execute(setup.source, where)
    if setup.module is not None:
        return _import_installed(setup.module, Path(setup.path).parent)
    return _import(Path(setup.path), setup.files)


def _import_installed(name: str, folder: Path) -> ModuleType:
    sys.path.append(str(folder))
    try:
        return importlib.import_module(name)
    except BaseException as error:  # an import may even call sys.exit
        raise CodeLoadError(_explain(name, error), error) from None


def _execute(source: str, where: str) -> ModuleType:
    module = ModuleType("headrace_user_source")
    sys.modules[module.__name__] = module
    Path(_SOURCE_FILE).write_text(source, encoding="utf-8", errors="surrogatepass")
    _announce_to_children(module.__name__, Path(_SOURCE_FILE).absolute())
    linecache.cache[where] = (len(source), None, source.splitlines(keepends=True), where)  # for tracebacks
    try:
        exec(compile(source, where, "exec"), vars(module))  # noqa: S102 - what this process is for
    except BaseException as error:
        raise CodeLoadError(_explain(where, error), error) from None
    return module


def _import(path: Path, files: Mapping[str, bytes]) -> ModuleType:
    module_name = f"headrace_user_{path.stem}"  # so that a file called json.py hides nothing
    if str(path) in files:
        kept_sources.install(files, path.parent)
        spec = kept_sources.spec_of(module_name, str(path), files[str(path)])
    else:
        spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        fault = f"{path} is not a Python file"
        raise CodeLoadError(fault, ImportError(fault))
    module = importlib.util.module_from_spec(spec)
    _announce_to_children(module_name, path)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # an import may even call sys.exit
        raise CodeLoadError(_explain(str(path), error), error) from None
    return module


def _announce_to_children(name: str, path: Path) -> None:
    os.environ[_MODULE_VARIABLE] = f"{name}={path}"


class _UserModule(importlib.abc.MetaPathFinder):
    """An import finder for the user's module, which is on no import path."""

    def __init__(self, name: str, path: str) -> None:
        self._name, self._path = name, path

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path)


def find_in_child() -> None:
    """Make the user's module importable in a process that `multiprocessing` spawned: what it receives refers to the
    module's functions by name."""
    name, _, path = os.environ.get(_MODULE_VARIABLE, "").partition("=")
    if name:
        sys.meta_path.append(_UserModule(name, path))


def _explain(where: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename or where}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == where]
    place = f"{where}, line {lines[-1]}" if lines else where
    return f"{place}: {' '.join(''.join(traceback.format_exception_only(error)).split())}"
