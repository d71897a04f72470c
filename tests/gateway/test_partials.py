"""What gateways that died have half written is deleted; what is being written stays, and what is described."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisGone
from redis.exceptions import OutOfMemoryError

from headrace_core.errors import RedisFull
from headrace_gateway.files.file_store import ABANDONED_AFTER_SECONDS, FileStore, sweep


def age(*paths: Path) -> None:
    old = time.time() - ABANDONED_AFTER_SECONDS - 60
    for path in paths:
        os.utime(path, (old, old))


@pytest.fixture
def store(redis: Redis, tmp_path: Path) -> FileStore:
    return FileStore(redis, tmp_path / "files", 10**6)


async def test_what_is_old_and_half_written_goes(tmp_path: Path, store: FileStore, redis: Redis) -> None:
    files = tmp_path / "files"
    (tmp_path / ".task-a").mkdir(parents=True)
    (tmp_path / ".task-a" / "rows.jsonl").write_text("x")
    (tmp_path / ".task-b").mkdir()
    files.mkdir()
    for name in (".file-1.partial", ".file-2.partial", "file-3"):
        (files / name).write_text("x")
    age(files / ".file-1.partial", files / "file-3", tmp_path / ".task-a")
    assert {path.name for path in await sweep(tmp_path, store)} == {".file-1.partial", ".task-a"}
    assert {path.name for path in files.iterdir()} == {".file-2.partial", "file-3"}
    assert sorted(os.listdir(tmp_path)) == [".task-b", "files"]
    assert await sweep(tmp_path / "nowhere", FileStore(redis, tmp_path / "nowhere" / "files", 1)) == []


async def test_of_a_file_that_is_described_only_its_bytes_are_there(store: FileStore) -> None:
    stored = await store.add(io.BytesIO(b"rows"), "a.jsonl", "fine-tune")
    assert os.listdir(store.folder) == [stored.id]
    assert store.whole(stored).read_bytes() == b"rows"


@pytest.mark.parametrize("error", [OutOfMemoryError("OOM command not allowed"), RedisFull("at its memory limit")])
async def test_bytes_whose_description_redis_refused_go(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(store._redis, "hset", refuse)
    with pytest.raises(type(error)):
        await store.add(io.BytesIO(b"rows"), "a.jsonl", "fine-tune")
    assert os.listdir(store.folder) == []


@pytest.mark.parametrize("described", [True, False])
async def test_bytes_whose_description_redis_did_not_answer_are_settled_later(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described: bool
) -> None:
    """As what a gateway leaves that is killed between the two."""
    hset = store._redis.hset

    async def unanswered(*arguments: Any) -> None:
        if described:
            await hset(*arguments)
        raise RedisGone("away")

    monkeypatch.setattr(store._redis, "hset", unanswered)
    with pytest.raises(RedisGone):
        await store.add(io.BytesIO(b"rows"), "a.jsonl", "fine-tune")
    mark, name = sorted(os.listdir(store.folder))
    assert mark == f".{name}.undescribed"
    assert await sweep(tmp_path, store) == []
    assert sorted(os.listdir(store.folder)) == [mark, name], "it may be under way"
    age(store.folder / mark)
    assert await sweep(tmp_path, store) == ([] if described else [store.folder / name])
    assert os.listdir(store.folder) == ([name] if described else [])
