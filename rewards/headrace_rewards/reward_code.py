"""Stores the code of a job's `function` rewards as it was when the job was submitted.

    path/file.py ─┐
    helpers.py   ─┼─ found by their imports ─► <folder>/<sha256>/file.py, helpers.py, …     every process loads these
    parts/x.py   ─┘                            sha256: of all of them

Invariants: a stored copy is complete, or it does not exist; loading checks the copy against its hash. The copy has the
function's file and, from the same folder, the modules and packages that it imports, directly or through others. Imports
computed at run time, and data files that the code opens, are not copied: they are read in place. `sha256` is the hash
of the lines `<sha256 of a file>  <its path>`, sorted by path, as `sha256sum` writes them.
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

MAX_FILES = 500
MAX_BYTES = 8 << 20
"""Limit of one function's code. Larger code belongs in an installed package (`registered`)."""

Code = Mapping[str, bytes]
"""Contents of files by path, relative to the folder of the function's file."""


def collect(file: Path) -> Code:
    """The file, and the files of its folder that it imports. Raises `InvalidRequest` if they are too many or too large,
    or cannot be read."""
    folder, code = file.parent, dict[str, bytes]()
    unread = [Path(file.name)]
    while unread:
        path = unread.pop()
        if str(path) in code:
            continue
        code[str(path)] = _read(folder / path)
        size = sum(map(len, code.values()))
        if len(code) > MAX_FILES or size > MAX_BYTES:
            raise InvalidRequest(
                f"{file} imports more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB of code beside it; install it "
                "as a package, and name its function as a registered reward",
                param="grader.function",
            )
        unread += [imported for imported in _imported_files(code[str(path)], path, folder) if str(imported) not in code]
    return code


def digest(code: Code) -> str:
    lines = (f"{hashlib.sha256(code[path]).hexdigest()}  {path}\n" for path in sorted(code))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def store(code: Code, folder: Path) -> str:
    """Write a copy below `folder`; returns its hash. Does nothing if there is one."""
    sha256 = digest(code)
    if (folder / sha256).is_dir():
        return sha256
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(dir=folder, prefix=".", suffix=".partial"))
    with written_whole(folder / sha256, temporary):
        for path, content in code.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_bytes(content)
    return sha256


def load(folder: Path, sha256: str) -> Code | None:
    """The stored copy with that hash; `None` if there is none. Raises `InvalidRequest` if the copy was changed."""
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
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}", param="grader.function") from None


def _imported_files(source: bytes, path: Path, folder: Path) -> Iterator[Path]:
    """The files of `folder` that the source imports. None if the source is not valid Python: that error is raised where
    it is loaded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes, say: they are shown where the code runs
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module_files(alias.name.split("."), folder)
        elif isinstance(node, ast.ImportFrom):
            package = path.parent.parts if node.level else ()
            base = package[: len(package) - (node.level - 1)] if node.level else ()
            module = [*base, *(node.module.split(".") if node.module else ())]
            yield from _module_files(module, folder)
            for alias in node.names:
                yield from _module_files([*module, alias.name], folder)


def _module_files(names: list[str], folder: Path) -> Iterator[Path]:
    """The files in `folder` that `import a.b.c` would execute."""
    for depth in range(1, len(names) + 1):
        place = Path(*names[:depth])
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if (folder / file).is_file():
                yield file
                break
