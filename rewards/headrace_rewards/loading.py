"""Imports a user's file and finds the function in it. Runs in the host process only."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class CannotLoad(Exception):
    """The message names the file and, where it is known, the line; `cause` is what was raised."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.cause = cause


def load(path: Path, name: str) -> Callable[..., Any]:
    """The function `name` of the file `path`, whose neighbours it can import; raises `CannotLoad`."""
    module = _import(path)
    try:
        function = getattr(module, name)
    except AttributeError as missing:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise CannotLoad(f"{path} has no '{name}'; it has: {', '.join(functions) or 'no function'}", missing) from None
    if not callable(function) or isinstance(function, type):
        kind = type(function).__name__
        raise CannotLoad(f"'{name}' in {path} is not a function but of type {kind}", TypeError(kind))
    return function


def _import(path: Path) -> Any:
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
        raise CannotLoad(_explain(path, error), error) from None
    return module


def _explain(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    return f"{where}: {' '.join(''.join(traceback.format_exception_only(error)).split())}"
