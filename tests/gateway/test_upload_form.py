"""What an upload needs of the disk, it needs of that of the data folder, and leaves nothing there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from headrace_core.config.service_settings import Settings
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.faults.small_disks import own_disk
from headrace_lab.waiting import wait_until_async

from .conftest import rows
from .keyed import gateway

HEAD = (
    b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b\r\ncontent-disposition: form-data; '
)
FILE = HEAD + b'name="file"; filename="a.jsonl"\r\n\r\n'
CONTENT = rows(30_000)
MULTIPART = {"content-type": "multipart/form-data; boundary=b"}


def settings(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir, max_upload_bytes=10_000_000)


def unnamed(folder: Path) -> list[int]:
    """Sizes of the files without a name that this process has open in the folder."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(descriptor).startswith(f"{folder}/") and not os.stat(descriptor).st_nlink:
                found.append(os.stat(descriptor).st_size)
        except FileNotFoundError:
            continue
    return found


async def test_an_upload_lies_in_the_data_folder_from_the_first_byte_on(
    redis: Redis, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "files", list[int]()

    async def content() -> AsyncIterator[bytes]:
        yield FILE
        for start in range(0, len(CONTENT), 100_000):
            yield CONTENT[start : start + 100_000]
        await wait_until_async(lambda: max(unnamed(folder), default=0) >= 2_000_000, "the kernel has the content")
        seen.extend(unnamed(folder))
        yield b"\r\n--b--\r\n"

    with own_disk(tmp_path / "temporary", 1) as small:  # as the system's own may be
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        async with gateway(settings(tmp_path), redis, redis_server.url) as served, served.http() as http:
            answer = await http.post("/v1/files", content=content(), headers=MULTIPART)
            assert answer.status_code == 200, answer.text
            kept = await http.get(f"/v1/files/{answer.json()['id']}/content")
    assert kept.content == CONTENT
    assert len(CONTENT) > 2_000_000
    assert len(seen) == 1
    assert unnamed(folder) == []
    assert [path.name for path in folder.iterdir()] == [answer.json()["id"]]


async def test_an_upload_that_breaks_off_leaves_nothing(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield FILE + CONTENT
        raise httpx.ReadError("the client left")

    async with gateway(settings(tmp_path), redis, redis_server.url) as served, served.http() as http:
        with pytest.raises(httpx.ReadError, match="the client left"):
            await http.post("/v1/files", content=content(), headers=MULTIPART)
        assert (await http.get("/v1/files")).json()["data"] == []
    assert unnamed(tmp_path / "files") == []
    assert list((tmp_path / "files").iterdir()) == []
