"""The weight store: policy versions, published atomically to a folder that learner and rollout workers share.

    <root>/<job>/v00000007-t2/        version 7, published by the learner's term 2
        model.safetensors, …          written first, in a folder of a temporary name
        manifest.json                 written last; names every file and its size
                                      then the folder gets its name (one rename)

Invariants: a folder with a version's name is complete; the ledger alone says which version is current (the name of its
folder is settled together with the step that made it); the newest `keep` versions are kept; other users of the machine
can neither read a version nor plant one. What a killed learner left half-written, the next term's first publication
removes.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..errors import WeightsDamaged
from ..redis_access.json_records import UNREADABLE
from . import private_files
from .atomic_write import MANIFEST, Manifest, written_whole
from .disk_space import require_space

_NAME = re.compile(r"v(\d{8,})-t(\d+)")


@dataclass(frozen=True, slots=True)
class Published:
    """One policy version in the store."""

    version: int
    name: str
    path: Path
    bytes: int
    seconds: float


def default_root() -> Path:
    """Shared memory where there is any (a version is written and read at memory speed), else the temporary folder."""
    shm = Path("/dev/shm")
    base = shm if os.access(shm, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"headrace-{os.getuid()}"


class WeightStore:
    """The versions of one job under `root`."""

    def __init__(self, root: Path, job_id: str, keep: int = 3) -> None:
        self.folder = root / job_id
        self._keep = keep

    def publish(self, version: int, term: int, write: Callable[[Path], None]) -> Published:
        """Let `write` fill a folder, then give it the version's name. Older versions beyond `keep` are removed.

        What `write` raises is raised, and nothing of it stays; `DiskFull` where there is no room.
        """
        began = time.monotonic()
        name = f"v{version:08d}-t{term}"
        if self.folder.parent == default_root():  # a root that was named is its operator's
            private_files.make(self.folder.parent)
        private_files.make(self.folder)
        self._clear_partials(term)
        with require_space(self.folder, self._needed()):
            return self._published(version, name, term, write, began)

    def _needed(self) -> int:
        """Bytes of the newest version; 0 before the first."""
        newest = self.versions()[-1:]
        try:
            return sum(f.stat().st_size for name in newest for f in (self.folder / name).iterdir())
        except FileNotFoundError:
            return 0  # a lost race: a fenced learner, not yet stopped, removed it

    def _published(self, version: int, name: str, term: int, write: Callable[[Path], None], began: float) -> Published:
        partial = Path(tempfile.mkdtemp(prefix=f".partial-t{term}-", dir=self.folder))
        target = self.folder / name
        with written_whole(target, partial):
            write(partial)
            sizes = {f.name: f.stat().st_size for f in sorted(partial.iterdir())}
            Manifest(version, sizes).write(partial)
            if target.exists():
                self._discard(target)
        self._forget_old()
        return Published(version, name, target, sum(sizes.values()), time.monotonic() - began)

    def open(self, name: str) -> Path:
        """The folder of a published version, checked against its manifest. Raises `WeightsDamaged`."""
        try:
            version, _ = _order(name)
            path = self.folder / name
            private_files.check(self.folder, path)
            manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest[int])
            found = {f: _size(path, f) for f in manifest.files}
        except (OSError, ValueError, *UNREADABLE) as error:
            raise WeightsDamaged(f"weights {name} are not complete: {error}") from error
        if found != manifest.files or manifest.version != version:
            raise WeightsDamaged(f"weights {name}: file sizes {found} are not those published, {manifest}")
        return path

    def versions(self) -> list[str]:
        """Names of the complete versions, oldest first; of one version, the earlier term first."""
        names = (p.parent.name for p in self.folder.glob(f"v*/{MANIFEST}"))
        return sorted((name for name in names if _NAME.fullmatch(name)), key=_order)

    def remove(self) -> None:
        """Delete every version of this job."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _forget_old(self) -> None:
        names = self.versions()
        kept = sorted({_order(name)[0] for name in names})[-self._keep :]
        for name in names:
            if _order(name)[0] not in kept:
                self._discard(self.folder / name)

    def _clear_partials(self, term: int) -> None:
        partials = self.folder.glob(".partial-t*")
        left = [p for p in partials if int(p.name.removeprefix(".partial-t").split("-")[0]) < term]
        for path in (*left, *self.folder.glob(".old-*")):
            shutil.rmtree(path, ignore_errors=True)

    def _discard(self, path: Path) -> None:
        """Take the version's name away first, so that no half-deleted folder bears it."""
        doomed = Path(tempfile.mkdtemp(prefix=".old-", dir=self.folder))
        try:
            path.rename(doomed / path.name)
        except FileNotFoundError:
            pass  # a lost race: a fenced learner, not yet stopped, removed it first
        finally:
            shutil.rmtree(doomed, ignore_errors=True)


def _size(folder: Path, name: str) -> int:
    """Of a plain file in the folder itself. Raises `ValueError` for anything else that bears a name."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not the name of a file in it")
    found = (folder / name).lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{name} is no plain file")
    return found.st_size


def _order(name: str) -> tuple[int, int]:
    """(version, term) of a folder's name. Raises `ValueError` for a name that is not one of ours."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not the name of a published version")
    return int(found[1]), int(found[2])
