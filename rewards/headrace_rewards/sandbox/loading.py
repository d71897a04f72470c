"""Imports a user's file or an installed module, or executes source text, and finds the function in it. Runs in the
host process only."""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace_rewards.sandbox import wire


class CannotLoad(Exception):
    """The message names the file and, where it is known, the line; `cause` is what was raised."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.cause = cause


def load(setup: wire.Setup) -> Callable[..., Any]:
    """The function that `setup` names; a file can import its neighbours. Raises `CannotLoad`."""
    where, name = setup.module or setup.path, setup.function
    module = _module(setup, where)
    try:
        function = getattr(module, name)
    except AttributeError as missing:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise CannotLoad(f"{where} has no '{name}'; it has: {', '.join(functions) or 'no function'}", missing) from None
    if not callable(function) or isinstance(function, type):
        kind = type(function).__name__
        raise CannotLoad(f"'{name}' in {where} is not a function but of type {kind}", TypeError(kind))
    return function


def _module(setup: wire.Setup, where: str) -> ModuleType:
    if setup.source is not None:
        return _execute(setup.source, where)
    if setup.module is not None:
        return _import_installed(setup.module, Path(setup.path).parent)
    return _import(Path(setup.path))


def _import_installed(name: str, folder: Path) -> ModuleType:
    sys.path.append(str(folder))
    try:
        return importlib.import_module(name)
    except BaseException as error:  # an import may even call sys.exit
        raise CannotLoad(_explain(name, error), error) from None


def _execute(source: str, where: str) -> ModuleType:
    module = ModuleType("headrace_user_source")
    sys.modules[module.__name__] = module
    linecache.cache[where] = (len(source), None, source.splitlines(keepends=True), where)  # for tracebacks
    try:
        exec(compile(source, where, "exec"), vars(module))  # noqa: S102 - what this process is for
    except BaseException as error:
        raise CannotLoad(_explain(where, error), error) from None
    return module


def _import(path: Path) -> ModuleType:
    module_name = f"headrace_user_{path.stem}"  # so that a file called json.py hides nothing
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        fault = f"{path} is not a Python file"
        raise CannotLoad(fault, ImportError(fault))
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # an import may even call sys.exit
        raise CannotLoad(_explain(str(path), error), error) from None
    return module


def _explain(where: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename or where}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == where]
    place = f"{where}, line {lines[-1]}" if lines else where
    return f"{place}: {' '.join(''.join(traceback.format_exception_only(error)).split())}"
