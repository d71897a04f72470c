"""Uploaded files: their content is in the data folder, their records are in Redis.

    .<id>….partial ─► <id>, and .<id>.undescribed beside it ─► description in Redis ─► <id> alone
                               └ Redis refuses: both go; its answer is lost, or the gateway dies: `sweep` asks it later

Invariants: a listed file was whole: its bytes are written under another name and renamed before it is described,
with their sum; no other user of the machine can read them; bytes that nobody describes do not stay.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from headrace_core.errors import Damaged, NotFound, RedisFull, TooLarge
from headrace_core.redis_access import keys
from headrace_core.redis_access.client import run
from headrace_core.redis_access.json_records import decode_record, decode_records
from headrace_core.storage.atomic_write import ABANDONED_AFTER_SECONDS, written_whole
from headrace_core.storage.disk_space import require_space
from headrace_core.types.job import new_id

from ..principal import LOCAL, Principal
from ..schemas.files import Purpose

_PART = 1024 * 1024
_UNDESCRIBED = ".undescribed"
"""Of the mark beside bytes that may have no description."""


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
    made_for: str | None = None
    """Id of the job for whose submission it was made; None: somebody uploaded it."""


def owner_of(file_id: str, raw: bytes) -> str:
    """The owner in a file's record. Raises `Damaged`."""
    return decode_record(raw, StoredFile, f"{keys.FILES} {file_id}").owner


class FileStore:
    """The uploaded files that `principal` may see, who owns the files that are added. Methods raise `NotFound` for any
    other file."""

    def __init__(self, redis: Redis, folder: Path, max_bytes: int, principal: Principal = LOCAL) -> None:
        self._redis = redis
        self.folder = folder
        self.max_bytes = max_bytes
        self._principal = principal

    def seen_by(self, principal: Principal) -> FileStore:
        """The same store, restricted to what `principal` may see."""
        return FileStore(self._redis, self.folder, self.max_bytes, principal)

    def path(self, file_id: str) -> Path:
        """The path of the file's content."""
        return self.folder / file_id

    def whole(self, stored: StoredFile) -> Path:
        """The path of the file's content. Raises `Damaged` if the content is missing, or has another size than was
        stored."""
        path = self.path(stored.id)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise Damaged(f"file {stored.id} cannot be read: {path}: {error.strerror}; upload it again") from error
        if size != stored.bytes:
            raise Damaged(f"file {stored.id}: {path} has {size} bytes of {stored.bytes}; upload it again")
        return path

    async def add(self, source: BinaryIO, filename: str, purpose: Purpose, made_for: str | None = None) -> StoredFile:
        """Keep what `source` holds. Raises `TooLarge`."""
        described = StoredFile(
            new_id("file-"), time.time(), filename, 0, purpose, self._principal.name, made_for=made_for
        )
        return await self.keep(described, source)

    async def keep(self, described: StoredFile, source: BinaryIO) -> StoredFile:
        """Keep what `source` holds, under the id of its description, whose size and sum are filled in. Raises
        `TooLarge`."""
        size, sha256 = await asyncio.to_thread(self._write, source, described.id)
        stored = msgspec.structs.replace(described, bytes=size, sha256=sha256)
        try:
            await run(self._redis.hset(keys.FILES, stored.id, msgspec.json.encode(stored)))
        except (ResponseError, RedisFull):  # an answer: it is not described
            self.path(stored.id).unlink(missing_ok=True)
            self._mark(stored.id).unlink(missing_ok=True)
            raise
        self._mark(stored.id).unlink(missing_ok=True)
        return stored

    async def sweep_undescribed(self) -> list[Path]:
        """Settle what was left marked, once it is old; the bytes that are gone. Raises `RedisError`."""
        removed = []
        for mark in sorted(self.folder.glob(f".*{_UNDESCRIBED}")):
            with suppress(FileNotFoundError):  # just described
                if not _is_old(mark):
                    continue
                path = self.path(mark.name.removeprefix(".").removesuffix(_UNDESCRIBED))
                if not await run(self._redis.hexists(keys.FILES, path.name)):
                    path.unlink(missing_ok=True)
                    removed.append(path)
                mark.unlink()
        return removed

    def _mark(self, file_id: str) -> Path:
        return self.folder / f".{file_id}{_UNDESCRIBED}"

    async def has(self, file_id: str) -> bool:
        """Whether the file exists, with its content, whoever owns it."""
        return bool(await run(self._redis.hexists(keys.FILES, file_id))) and self.path(file_id).is_file()

    async def get(self, file_id: str, param: str = "file_id") -> StoredFile:
        """The record of one file."""
        raw = await run(self._redis.hget(keys.FILES, file_id))
        stored = None if raw is None else decode_record(raw, StoredFile, f"{keys.FILES} {file_id}")
        if stored is None or not self._principal.sees(stored.owner):
            raise NotFound(f"no file {file_id!r}", param=param)
        return stored

    async def all(self) -> list[StoredFile]:
        """All files that the principal may see, newest first."""
        raw = await run(self._redis.hgetall(keys.FILES))
        stored = decode_records(((f"{keys.FILES} {i.decode(errors='replace')}", f) for i, f in raw.items()), StoredFile)
        return sorted((f for f in stored if self._principal.sees(f.owner)), key=lambda f: (-f.created_at, f.id))

    async def remove(self, file_id: str) -> None:
        """Delete a file: its record, then its content."""
        await self.get(file_id)
        if not await run(self._redis.hdel(keys.FILES, file_id)):
            raise NotFound(f"no file {file_id!r}", param="file_id")
        self.path(file_id).unlink(missing_ok=True)

    def _write(self, source: BinaryIO, file_id: str) -> tuple[int, str]:
        """Write the content; returns (its size, its SHA-256). Raises `TooLarge` or `DiskFull`; then nothing is left."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self.folder / f".{new_id(file_id)}.partial"
        checksum = hashlib.sha256()
        with written_whole(self.path(file_id), partial):
            with require_space(self.folder), open(partial, "xb", opener=_open_private) as target:
                while part := source.read(_PART):
                    checksum.update(part)
                    target.write(part)
                size = target.tell()
            if size > self.max_bytes:
                raise TooLarge(f"the file has {size} bytes; at most {self.max_bytes} are taken", param="file")
            self._mark(file_id).touch(0o600)
        return size, checksum.hexdigest()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


async def sweep(data_dir: Path, files: FileStore) -> list[Path]:
    """Delete what gateways that died have left in the data folder; what it was. `files` sees those of every user.
    Raises `RedisError`."""
    swept = await asyncio.to_thread(_sweep_half_written, data_dir)
    return swept + await files.sweep_undescribed()


def _sweep_half_written(data_dir: Path) -> list[Path]:
    swept = []
    for left in (*(data_dir / "files").glob(".*.partial"), *data_dir.glob(".task-*")):
        try:
            if not _is_old(left):
                continue
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        except FileNotFoundError:  # another gateway came first
            continue
        swept.append(left)
    return swept


def _is_old(path: Path) -> bool:
    """Raises `FileNotFoundError`."""
    return time.time() - path.stat().st_mtime >= ABANDONED_AFTER_SECONDS
