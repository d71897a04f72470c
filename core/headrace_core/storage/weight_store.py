"""The weight store: policy versions, published atomically to a folder that learner and rollout workers share.

    <root>/<job>/v00000007-t2/        version 7, published by the learner's term 2
        model.safetensors, …          written first, in a folder with a temporary name
        manifest.json                 written last; lists every file and its size
                                      then the folder is renamed to its final name

Invariants: a folder with a version's name is complete. Only the ledger says which version is current: the folder's name
is settled together with the step that made the version. The newest `keep` versions remain. Other users of the machine
can neither read nor replace a version. Incomplete folders of a killed learner are removed by the next term's first
publication.
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
    """One policy version in the store. `seconds`: how long it took to write."""

    version: int
    name: str
    path: Path
    bytes: int
    seconds: float


def default_root() -> Path:
    """A folder in shared memory if there is any (so that versions are written and read at memory speed), else in the
    temporary folder."""
    shm = Path("/dev/shm")
    base = shm if os.access(shm, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"headrace-{os.getuid()}"


class WeightStore:
    """The versions of one job under `root`, of which the newest `keep` remain."""

    def __init__(self, root: Path, job_id: str, keep: int = 3) -> None:
        self.folder = root / job_id
        self._keep = keep

    def publish(self, version: int, term: int, write: Callable[[Path], None]) -> Published:
        """Publish a version: `write` fills a temporary folder, which then gets the version's name. Removes old
        versions.

        If `write` raises, its files are removed and the error is raised. Raises `DiskFull` without enough space.
        """
        began = time.monotonic()
        name = f"v{version:08d}-t{term}"
        if self.folder.parent == default_root():  # a configured root has the permissions its operator gave it
            private_files.make(self.folder.parent)
        private_files.make(self.folder)
        self._clear_partials(term)
        with require_space(self.folder, self._needed()):
            return self._published(version, name, term, write, began)

    def _needed(self) -> int:
        """Estimated size of a version in bytes: that of the newest one; 0 before the first."""
        newest = self.versions()[-1:]
        try:
            return sum(f.stat().st_size for name in newest for f in (self.folder / name).iterdir())
        except FileNotFoundError:
            return 0  # a lost race: a fenced learner that is still running removed it

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
        """The folder of the published version `name`. Raises `WeightsDamaged` unless it matches its manifest."""
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
        """Names of the complete versions, oldest first; of the same version, the earlier term first."""
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
        """Delete a version. It is renamed first, so that no half-deleted folder has a version's name."""
        doomed = Path(tempfile.mkdtemp(prefix=".old-", dir=self.folder))
        try:
            path.rename(doomed / path.name)
        except FileNotFoundError:
            pass  # a lost race: a fenced learner that is still running removed it first
        finally:
            shutil.rmtree(doomed, ignore_errors=True)


def _size(folder: Path, name: str) -> int:
    """Size in bytes of a regular file directly in `folder`. Raises `ValueError` for a path, a link or a folder."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not the name of a file in it")
    status = (folder / name).lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name} is no plain file")
    return status.st_size


def _order(name: str) -> tuple[int, int]:
    """(version, term) in the name of a published version. Raises `ValueError` for any other name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a published version")
    return int(match[1]), int(match[2])
