"""Uploaded files: bytes under the data folder, descriptions in Redis.

Invariants: a listed file was whole: its bytes are written under another name and renamed before it is described,
with their sum; no other user of the machine can read them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import BinaryIO

import msgspec
from redis.asyncio import Redis

from headrace_core.errors import Damaged, NotFound, TooLarge
from headrace_core.jobs.job_store import new_id
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.json_records import decode_record, decode_records
from headrace_core.storage.atomic_write import OLD_SECONDS, written_whole
from headrace_core.storage.disk_space import require_space

from ..principal import LOCAL, Principal
from ..schemas.files import Purpose

_PART = 1024 * 1024


class StoredFile(msgspec.Struct, frozen=True):
    """One uploaded file."""

    id: str
    created_at: float
    filename: str
    bytes: int
    purpose: Purpose
    owner: str = LOCAL.name
    sha256: str | None = None
    """Of its bytes."""


def owner_of(file_id: str, raw: bytes) -> str:
    """Whose file a stored description is of. Raises `Damaged`."""
    return decode_record(raw, StoredFile, f"{keys.FILES} {file_id}").owner


class FileStore:
    """The uploaded files that `principal` may see; what is added is theirs. Methods raise `NotFound` for any other."""

    def __init__(self, redis: Redis, folder: Path, max_bytes: int, principal: Principal = LOCAL) -> None:
        self._redis = redis
        self.folder = folder
        self.max_bytes = max_bytes
        self._principal = principal

    def seen_by(self, principal: Principal) -> FileStore:
        """The same store, as another sees it."""
        return FileStore(self._redis, self.folder, self.max_bytes, principal)

    def path(self, file_id: str) -> Path:
        """The path of the file's content."""
        return self.folder / file_id

    def whole(self, stored: StoredFile) -> Path:
        """The same. Raises `Damaged` where there are none, or not as many as were stored."""
        path = self.path(stored.id)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise Damaged(f"file {stored.id} cannot be read: {path}: {error.strerror}; upload it again") from error
        if size != stored.bytes:
            raise Damaged(f"file {stored.id}: {path} has {size} bytes of {stored.bytes}; upload it again")
        return path

    async def add(self, source: BinaryIO, filename: str, purpose: Purpose) -> StoredFile:
        """Keep what `source` holds. Raises `TooLarge`."""
        return await self.keep(new_id("file-"), source, filename, purpose, self._principal.name, time.time())

    async def keep(
        self, file_id: str, source: BinaryIO, filename: str, purpose: Purpose, owner: str, created_at: float
    ) -> StoredFile:
        """The same under a given id; of two that are kept under one, either stays. Raises `TooLarge`."""
        size, sha256 = await asyncio.to_thread(self._write, source, file_id)
        stored = StoredFile(file_id, created_at, filename, size, purpose, owner, sha256)
        await run(self._redis.hset(keys.FILES, file_id, msgspec.json.encode(stored)))
        return stored

    async def has(self, file_id: str) -> bool:
        """Whether there is such a file, with its bytes, whoever may see it."""
        return bool(await run(self._redis.hexists(keys.FILES, file_id))) and self.path(file_id).is_file()

    async def get(self, file_id: str, param: str = "file_id") -> StoredFile:
        """The description of one file."""
        raw = await run(self._redis.hget(keys.FILES, file_id))
        stored = None if raw is None else decode_record(raw, StoredFile, f"{keys.FILES} {file_id}")
        if stored is None or not self._principal.sees(stored.owner):
            raise NotFound(f"no file {file_id!r}", param=param)
        return stored

    async def all(self) -> list[StoredFile]:
        """Newest first."""
        raw = await run(self._redis.hgetall(keys.FILES))
        stored = decode_records(((f"{keys.FILES} {i.decode(errors='replace')}", f) for i, f in raw.items()), StoredFile)
        return sorted((f for f in stored if self._principal.sees(f.owner)), key=lambda f: (-f.created_at, f.id))

    async def remove(self, file_id: str) -> None:
        """Forget a file and delete its bytes."""
        await self.get(file_id)
        if not await run(self._redis.hdel(keys.FILES, file_id)):
            raise NotFound(f"no file {file_id!r}", param="file_id")
        self.path(file_id).unlink(missing_ok=True)

    def _write(self, source: BinaryIO, file_id: str) -> tuple[int, str]:
        """(bytes, their SHA-256). Raises `TooLarge`, `DiskFull`, and keeps nothing then."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self.folder / f".{new_id(file_id)}.partial"
        told = hashlib.sha256()
        with written_whole(self.path(file_id), partial):
            with require_space(self.folder), open(partial, "xb", opener=_for_us_alone) as target:
                while part := source.read(_PART):
                    told.update(part)
                    target.write(part)
                size = target.tell()
            if size > self.max_bytes:
                raise TooLarge(f"the file has {size} bytes; at most {self.max_bytes} are taken", param="file")
        return size, told.hexdigest()


def _for_us_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def sweep(data_dir: Path) -> list[Path]:
    """Delete what gateways that died have left in the data folder; what it was."""
    swept = []
    for left in (*(data_dir / "files").glob(".*.partial"), *data_dir.glob(".task-*")):
        try:
            if time.time() - left.stat().st_mtime < OLD_SECONDS:
                continue
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        except FileNotFoundError:  # another gateway came first
            continue
        swept.append(left)
    return swept
