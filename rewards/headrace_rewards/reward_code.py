"""The code of a job's `function` rewards, kept as it was when the job was submitted.

    path/file.py ─┐
    helpers.py   ─┼─ found by their imports ─► <folder>/<sha256>/file.py, helpers.py, …     read again by every process
    parts/x.py   ─┘                             sha256 is of all of them

Held here: a copy is whole, or not there; what is read again is what was kept, by its hash. Kept are the file and, of
its neighbours (modules and packages in its folder), those that it imports, and those that they import; imports that
only a run computes, and data that the code opens, are read where they lie. `sha256` is that of the lines
`<sha256 of a file>  <its path>`, sorted by path, as `sha256sum` writes them.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import mkdtemp

from headrace_core.errors import InvalidRequest
from headrace_core.storage.atomic_write import written_whole

MOST_FILES = 500
MOST_BYTES = 8 << 20
"""Of one function's code. More belongs into a package that is installed (`registered`)."""

Code = Mapping[str, bytes]
"""Files by their paths from the folder of the function's file on."""


def collected(file: Path) -> Code:
    """The file and those of its neighbours that it imports. Raises `InvalidRequest` where they are too many or too
    large, or cannot be read."""
    folder, code = file.parent, dict[str, bytes]()
    waiting = [Path(file.name)]
    while waiting:
        path = waiting.pop()
        if str(path) in code:
            continue
        code[str(path)] = _read(folder / path)
        size = sum(map(len, code.values()))
        if len(code) > MOST_FILES or size > MOST_BYTES:
            raise InvalidRequest(
                f"{file} imports more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB of code beside it; install it "
                "as a package, and name its function as a registered reward",
                param="grader.function",
            )
        waiting += [found for found in _imported(code[str(path)], path, folder) if str(found) not in code]
    return code


def digest(code: Code) -> str:
    lines = (f"{hashlib.sha256(code[path]).hexdigest()}  {path}\n" for path in sorted(code))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def keep(code: Code, folder: Path) -> str:
    """Write a copy below `folder`; returns its hash. Idempotent."""
    sha256 = digest(code)
    if (folder / sha256).is_dir():
        return sha256
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(mkdtemp(dir=folder, prefix=".", suffix=".partial"))
    with written_whole(folder / sha256, made):
        for path, content in code.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            (made / path).write_bytes(content)
    return sha256


def kept(folder: Path, sha256: str) -> Code | None:
    """The copy of that hash; `None` where there is none. Raises `InvalidRequest` where it is not what was kept."""
    copy = folder / sha256
    if not copy.is_dir():
        return None
    code = {str(path.relative_to(copy)): _read(path) for path in copy.rglob("*") if path.is_file()}
    if digest(code) != sha256:
        raise InvalidRequest(f"the reward's code was changed in {copy}; submit the job again", param="grader.function")
    return code


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}", param="grader.function") from None


def _imported(source: bytes, path: Path, folder: Path) -> Iterator[Path]:
    """Files beside the function's that this one imports; none of a source that is no Python: loading it says so."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes, say: they are told where it runs
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _of_module(alias.name.split("."), folder)
        elif isinstance(node, ast.ImportFrom):
            package = path.parent.parts if node.level else ()
            base = package[: len(package) - (node.level - 1)] if node.level else ()
            module = [*base, *(node.module.split(".") if node.module else ())]
            yield from _of_module(module, folder)
            for alias in node.names:
                yield from _of_module([*module, alias.name], folder)


def _of_module(names: list[str], folder: Path) -> Iterator[Path]:
    """The files that importing `a.b.c` executes, as far as they lie in `folder`."""
    for depth in range(1, len(names) + 1):
        place = Path(*names[:depth])
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if (folder / file).is_file():
                yield file
                break
