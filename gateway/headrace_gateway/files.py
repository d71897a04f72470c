"""Uploaded files: bytes under the data folder, descriptions in Redis.

Invariant: a file that is listed is whole: its bytes are written under another name and renamed before it is described.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import BinaryIO

import msgspec
from redis.asyncio import Redis

from headrace_core import keys
from headrace_core.errors import NotFound, TooLarge
from headrace_core.jobs import new_id
from headrace_core.redis import answer

from .identity import LOCAL, Principal


class StoredFile(msgspec.Struct, frozen=True):
    """One uploaded file."""

    id: str
    created_at: float
    filename: str
    bytes: int
    purpose: str
    owner: str = LOCAL.name


def owner_of(raw: bytes) -> str:
    """Whose file a stored description is of."""
    return msgspec.json.decode(raw, type=StoredFile).owner


class FileStore:
    """The uploaded files that `principal` may see; what is added is his. Methods raise `NotFound` for any other."""

    def __init__(self, redis: Redis, folder: Path, max_bytes: int, principal: Principal = LOCAL) -> None:
        self._redis = redis
        self._folder = folder
        self.max_bytes = max_bytes
        self._principal = principal

    def seen_by(self, principal: Principal) -> FileStore:
        """The same store, as another sees it."""
        return FileStore(self._redis, self._folder, self.max_bytes, principal)

    def path(self, file_id: str) -> Path:
        """Where the bytes are."""
        return self._folder / file_id

    async def add(self, source: BinaryIO, filename: str, purpose: str) -> StoredFile:
        """Keep what `source` holds. Raises `TooLarge`."""
        return await self.keep(new_id("file-"), source, filename, purpose, self._principal.name, time.time())

    async def keep(
        self, file_id: str, source: BinaryIO, filename: str, purpose: str, owner: str, created_at: float
    ) -> StoredFile:
        """The same under a given id; of two that are kept under one, either stays. Raises `TooLarge`."""
        size = await asyncio.to_thread(self._write, source, file_id)
        stored = StoredFile(file_id, created_at, filename, size, purpose, owner)
        await answer(self._redis.hset(keys.FILES, file_id, msgspec.json.encode(stored)))
        return stored

    async def has(self, file_id: str) -> bool:
        """Whether there is such a file, whoever may see it."""
        return bool(await answer(self._redis.hexists(keys.FILES, file_id)))

    async def get(self, file_id: str, param: str = "file_id") -> StoredFile:
        """The description of one file."""
        raw = await answer(self._redis.hget(keys.FILES, file_id))
        stored = None if raw is None else msgspec.json.decode(raw, type=StoredFile)
        if stored is None or not self._principal.sees(stored.owner):
            raise NotFound(f"no file {file_id!r}", param=param)
        return stored

    async def all(self) -> list[StoredFile]:
        """Newest first."""
        stored = [msgspec.json.decode(f, type=StoredFile) for f in await answer(self._redis.hvals(keys.FILES))]
        return sorted((f for f in stored if self._principal.sees(f.owner)), key=lambda f: (-f.created_at, f.id))

    async def remove(self, file_id: str) -> None:
        """Forget a file and delete its bytes."""
        await self.get(file_id)
        if not await answer(self._redis.hdel(keys.FILES, file_id)):
            raise NotFound(f"no file {file_id!r}", param="file_id")
        self.path(file_id).unlink(missing_ok=True)

    def _write(self, source: BinaryIO, file_id: str) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".{new_id(file_id)}.partial"
        try:
            with partial.open("wb") as target:
                shutil.copyfileobj(source, target, 1024 * 1024)
                size = target.tell()
            if size > self.max_bytes:
                raise TooLarge(f"the file has {size} bytes; at most {self.max_bytes} are taken", param="file")
            partial.rename(self.path(file_id))
        finally:
            partial.unlink(missing_ok=True)
        return size
