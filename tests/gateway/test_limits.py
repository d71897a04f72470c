"""How often, and how much: rate limits by key and address, and bodies, whatever their length is said to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from redis.asyncio import Redis

from headrace_core.config.service_settings import Settings
from headrace_core.redis_access import keys
from headrace_gateway.auth.authenticate import authenticate
from headrace_gateway.auth.request_info import RequestInfo
from headrace_gateway.middleware.request_envelope import MAX_JSON_BYTES
from headrace_gateway.service.embedded_redis import RedisServer

from .conftest import MAX_UPLOAD_BYTES, Served, body
from .keyed import Keyed, gateway
from .test_envelope import error_of

PER_MINUTE = 6


@pytest.fixture
async def slow(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Keyed]:
    """A gateway with keys that takes six requests a minute of each."""
    settings = Settings(data_dir=tmp_path, require_keys="on", requests_per_minute=PER_MINUTE)
    async with gateway(settings, redis, redis_server.url) as served:
        yield served


async def test_every_answer_says_how_many_more(slow: Keyed) -> None:
    async with slow.http(slow.alice) as alice, slow.http(slow.bob) as bob:
        for left in range(PER_MINUTE - 1, -1, -1):
            answer = await alice.get("/v1/models" if left % 2 else "/v1/files/file-none")
            assert answer.headers["x-ratelimit-limit-requests"] == "6"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
            seconds = float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s"))
            assert 0 <= 10 * (PER_MINUTE - left) - seconds < 5
        refused = await alice.get("/v1/models")
        error = error_of(refused, 429)
        assert error["code"] == "rate_limit_exceeded"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-should-retry"] == "true"
        assert 5 < int(refused.headers["retry-after"]) <= 10
        assert abs(int(refused.headers["retry-after-ms"]) / 1000 - int(refused.headers["retry-after"])) <= 1
        assert (await bob.get("/v1/models")).status_code == 200  # another's bucket
        assert (await alice.get("/healthz")).status_code == 200  # never counted


async def test_openais_client_sees_a_rate_limit(slow: Keyed) -> None:
    async with slow.openai(slow.alice) as client:
        for _ in range(PER_MINUTE):
            await client.models.list()
        with pytest.raises(openai.RateLimitError) as refused:
            await client.models.list()
        assert refused.value.code == "rate_limit_exceeded"


async def test_who_tries_keys_is_counted_by_address(slow: Keyed) -> None:
    async with slow.http() as http:
        for n in range(PER_MINUTE):
            error_of(await http.get("/v1/models", headers={"authorization": f"Bearer hr-{n}"}), 401)
        error_of(await http.get("/v1/models", headers={"authorization": "Bearer hr-x"}), 429)
        assert (await http.post("/login", data={"key": slow.alice})).status_code == 429
    async with slow.http(slow.alice) as alice:
        assert (await alice.get("/v1/models")).status_code == 200


async def ask(redis: Redis, per_minute: int, address: str = "a") -> Any:
    return await authenticate(redis, key="", session="", address=address, per_minute=per_minute, resource=None)


async def paid_until(redis: Redis, name: bytes) -> float:
    stored = await redis.get(name)
    assert stored is not None
    return float(stored)


async def test_the_bucket_fills_as_time_passes(redis: Redis) -> None:
    first = [await ask(redis, 60) for _ in range(60)]
    assert [a.allowed for a in first] == [True] * 60
    refused = await ask(redis, 60)
    assert (refused.allowed, refused.remaining) == (False, 0)
    assert 0 < refused.retry_after <= 1.0
    [name] = [n async for n in redis.scan_iter("*paid*")]
    paid = await paid_until(redis, name)
    await redis.set(name, f"{paid - 2.5:.6f}")  # as if two seconds and a half had passed
    later = [await ask(redis, 60) for _ in range(4)]
    assert [a.allowed for a in later] in ([True, True, False, False], [True, True, True, False])
    assert (await ask(redis, 60, "b")).remaining == 59


async def test_a_clock_that_was_set_back_locks_nobody_out(redis: Redis) -> None:
    for _ in range(60):
        await ask(redis, 60)
    [name] = [n async for n in redis.scan_iter("*paid*")]
    paid = await paid_until(redis, name)
    await redis.set(name, f"{paid + 3600:.6f}")  # as if the clock had been set back by an hour since
    assert (await ask(redis, 60)).allowed
    assert await paid_until(redis, name) < paid + 60
    await redis.set(name, "damaged")
    assert (await ask(redis, 60)).allowed


async def test_a_bucket_is_forgotten_when_it_is_full(redis: Redis) -> None:
    await ask(redis, 6000)
    [name] = [n async for n in redis.scan_iter("*paid*")]
    assert 0 < await redis.pttl(name) <= 10
    assert await redis.exists(keys.API_KEYS_USED) == 0


async def test_a_redis_that_forgot_the_script_is_told_again(redis: Redis) -> None:
    await redis.script_flush()
    assert (await ask(redis, 60)).allowed


async def test_nothing_is_counted_on_loopback_without_keys(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        answer = await http.get("/v1/models")
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    assert Settings().counted_per_minute == 0
    assert Settings(host="0.0.0.0", require_keys="off").counted_per_minute > 0
    assert Settings(require_keys="on", requests_per_minute=0).counted_per_minute == 0


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3", "10.1.2.3"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"), ("", ""), ("testclient", "testclient"),
    ],
)  # fmt: skip
def test_what_is_counted_together(address: str, network: str) -> None:
    assert RequestInfo("GET", "/", "", address, {}).network == network


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def chunks(size: int, seen: list[int]) -> AsyncIterator[bytes]:
    """A body without a length, in pieces of 64 KiB."""
    while sum(seen) < size:
        seen.append(65_536)
        yield b"x" * 65_536


@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs", "/v1/fine_tuning/alpha/graders/run", "/v1/headrace/keys"])
async def test_a_body_without_a_length_is_counted_as_it_comes(served: Served, path: str) -> None:
    seen: list[int] = []
    async with httpx.AsyncClient(base_url=served.url) as http:
        headers = {"content-type": "application/json"}
        answer = await http.post(path, content=chunks(4 * MAX_JSON_BYTES, seen), headers=headers)
    assert error_of(answer, 413)["code"] == "too_large"


async def test_an_upload_without_a_length_is_counted_as_it_comes(served: Served) -> None:
    form = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'

    async def endless() -> AsyncIterator[bytes]:
        yield form
        async for chunk in chunks(20 * MAX_UPLOAD_BYTES, []):
            yield chunk

    async with httpx.AsyncClient(base_url=served.url) as http:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await http.post("/v1/files", content=endless(), headers=headers)
        assert error_of(answer, 413)["code"] == "too_large"
        assert (await http.get("/v1/files")).json()["data"] == []
    assert not list((served.data_dir / "files").glob("*"))


async def test_a_length_that_is_too_large_is_refused_unread(served: Served) -> None:
    port = int(served.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/fine_tuning/jobs HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {10**12}\r\n\r\n".encode())  # and no byte of it
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), timeout=10)
    assert b" 413 " in answer
    writer.close()
    await writer.wait_closed()


async def test_what_anybody_may_send_is_small(slow: Keyed) -> None:
    """Nobody needs a key for the login; so its body is bounded by what a key and a path are."""
    async with slow.http() as http:
        error_of(await http.post("/login", data={"key": "a" * 100_000}), 413)
        assert (await http.post("/login", data={"key": "a" * 500, "next": "/é" * 500})).status_code == 401


PART = b'--b\r\ncontent-disposition: form-data; name="f%d"%s\r\n\r\n'


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (PART % (0, b"") + b"x" * 100_000, "maximum size"),
        (b"".join(PART % (n, b"") + b"x" * 1000 + b"\r\n" for n in range(50)), "Too many fields"),
        (b"".join(PART % (n, b'; filename="a"') + b"x\r\n" for n in range(2)), "Too many files"),
        (b"--b\r\nx: " + b"x" * 100_000, "Invalid multipart"),
        (b"purpose=" + b"x" * 100_000, "maximum size"),
    ],
    ids=["a field", "fields", "files", "the head of a part", "no multipart"],
)
async def test_what_is_no_file_of_an_upload_is_small(served: Served, content: bytes, refusal: str) -> None:
    """A file goes to the disk as it comes, anything else of a form to memory."""
    multipart = content.startswith(b"--b")
    kind = "multipart/form-data; boundary=b" if multipart else "application/x-www-form-urlencoded"
    async with httpx.AsyncClient(base_url=served.url) as http:
        content += b"\r\n--b--\r\n" if multipart else b""
        answer = await http.post("/v1/files", content=content, headers={"content-type": kind})
        assert refusal in error_of(answer, 400)["message"]


async def test_python_source_has_a_limit_of_its_own(served: Served) -> None:
    source = "def grade(sample, item):\n    return 1.0\n#" + "x" * 256_000
    grader = {"type": "python", "name": "long", "source": source}
    async with httpx.AsyncClient(base_url=served.url) as http:
        error = error_of(await http.post("/v1/fine_tuning/jobs", json=body("file-1", grader=grader)), 400)
        assert error["param"] == "training_file"  # there is none; the grader itself, then:
        answer = await http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": grader}, timeout=60)
        assert "256000" in error_of(answer, 400)["message"].replace(",", "").replace("_", "")
