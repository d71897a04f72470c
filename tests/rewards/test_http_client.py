"""Whatever a server does ends as an answer or a failure. A real server on loopback, never a fake transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from headrace_core.errors import InvalidRequest, InvalidState
from headrace_core.protocols.grader_check import Failure
from headrace_lab.rewards import started
from headrace_rewards import http_client
from headrace_rewards.http_client import MAX_ANSWER_BYTES, Breaker, JsonAnswer, JsonClient, is_allowed, parsed_url

from .http_server import Answerer, Asked, Reply, Server, serving

SECRET = 'Bearer s3cret"key'


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_FIRST_WAIT", 0.005)


@asynccontextmanager
async def asking(answer: Answerer, **options: Any) -> AsyncIterator[tuple[JsonClient, Server]]:
    """A client that was started, and the server it asks."""
    async with serving(answer) as server:
        fields: dict[str, Any] = {"timeout": 5.0, "attempts": 3, "concurrency": 4, **options}
        client = JsonClient(f"{server.url}/score", **fields)
        async with started(client):
            yield client, server


def in_turn(*replies: Reply) -> Callable[[Asked], Reply]:
    """Each reply once, the last one for ever."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def failure(result: JsonAnswer | Failure) -> Failure:
    assert isinstance(result, Failure), result
    return result


async def test_an_answer_and_what_was_asked() -> None:
    async with asking(lambda asked: Reply({"echo": asked.body}), headers={"authorization": SECRET}) as (client, server):
        assert await client.post(b'{"a": 1}') == JsonAnswer({"echo": {"a": 1}})
    (asked,) = server.asked
    assert asked.path == "/score"
    assert asked.headers["authorization"] == SECRET
    assert asked.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "bad", [Reply(status=429), Reply(status=500), Reply(status=503), Reply(hang_up=True)], ids=repr
)
async def test_what_may_pass_is_tried_again(bad: Reply) -> None:
    async with asking(in_turn(bad, bad, Reply({"ok": 1}))) as (client, server):
        assert await client.post(b"{}") == JsonAnswer({"ok": 1})
        assert len(server.asked) == 3


async def test_after_the_last_attempt_it_is_unavailable() -> None:
    async with asking(in_turn(Reply(b"out of  memory", 500)), attempts=2) as (client, server):
        fault = failure(await client.post(b"{}"))
        assert (fault.kind, len(server.asked)) == ("unavailable", 2)
        assert fault.message == f"{server.url} answered 500: out of memory"


async def test_nobody_listens() -> None:
    async with serving(in_turn(Reply())) as server:
        url = server.url
    client = JsonClient(url, timeout=5, attempts=2, concurrency=1)
    await client.start()
    fault = failure(await client.post(b"{}"))
    await client.close()
    assert fault.kind == "unavailable"
    assert "cannot be asked: ConnectError" in fault.message


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_honoured(form: str) -> None:
    at = datetime.now(UTC) + timedelta(seconds=2)
    value = "1" if form == "seconds" else format_datetime(at, usegmt=True)
    busy = Reply(status=429, headers={"retry-after": value})
    async with asking(in_turn(busy, Reply({}))) as (client, server):
        began = time.monotonic()
        assert await client.post(b"{}") == JsonAnswer({})
        assert time.monotonic() - began > 0.9
        assert len(server.asked) == 2


async def test_a_server_that_wants_an_hour_is_not_waited_for() -> None:
    async with asking(in_turn(Reply(status=503, headers={"retry-after": "3600"}))) as (client, server):
        assert failure(await client.post(b"{}")).kind == "unavailable"
        assert len(server.asked) == 1


@pytest.mark.parametrize("value", ["soon", "-5", "", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_a_retry_after_that_says_nothing_is_no_obstacle(value: str) -> None:
    async with asking(in_turn(Reply(status=503, headers={"retry-after": value}), Reply({}))) as (client, _):
        assert await client.post(b"{}") == JsonAnswer({})


@pytest.mark.parametrize(
    ("reply", "kind", "says"),
    [
        (Reply(b"no such field", 422), "bad_input", "no such field"),
        (Reply(status=302, headers={"location": "http://10.0.0.1/"}), "unavailable", "redirects to http://10.0.0.1/"),
        (Reply(status=404), "unavailable", "answered 404"),
        (Reply(b"<html>"), "bad_output", "<html>"),
        (Reply(b'{"a": NaN}'), "bad_output", "no JSON"),
        (Reply(b"[" * 100_000), "bad_output", "no JSON"),
        (Reply(b"\xff\xfe"), "bad_output", "no JSON"),
        (Reply(b" " * (MAX_ANSWER_BYTES + 1)), "bad_output", "more than"),
        (Reply(b"", headers={"content-encoding": "gzip"}), "bad_output", "compressed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_would_not_pass_is_asked_once(reply: Reply, kind: str, says: str) -> None:
    async with asking(in_turn(reply)) as (client, server):
        fault = failure(await client.post(b"{}"))
        assert fault.kind == kind
        assert says in fault.message
        assert len(server.asked) == 1


async def test_a_slow_server_is_left_after_the_timeout_even_if_it_trickles() -> None:
    async def never(_: Asked) -> Reply:
        await asyncio.sleep(60)
        raise AssertionError("the client waited")

    async with asking(never, timeout=0.1) as (client, server):
        fault = failure(await client.post(b"{}"))
        assert (fault.kind, len(server.asked)) == ("timeout", 1)
        assert "within 0.1 s" in fault.message
        server.answer = lambda _: Reply(b"{", headers={"content-length": "100"})
        assert failure(await client.post(b"{}")).kind == "timeout"


async def test_no_more_at_once_than_allowed() -> None:
    running, most = 0, 0

    async def slow(_: Asked) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return Reply({})

    async with asking(slow, concurrency=2) as (client, _):
        assert await asyncio.gather(*(client.post(b"{}") for _ in range(6))) == [JsonAnswer({})] * 6
    assert most == 2


async def test_the_breaker_opens_lets_one_through_and_closes() -> None:
    async with asking(in_turn(Reply(status=500)), attempts=1, breaker=Breaker(3, 0.3)) as (client, server):
        for _ in range(3):
            await client.post(b"{}")
        fault = failure(await client.post(b"{}"))
        assert (fault.kind, len(server.asked)) == ("unavailable", 3)
        assert "failed 3 times in a row" in fault.message
        await asyncio.sleep(0.35)
        await asyncio.gather(*(client.post(b"{}") for _ in range(4)))
        assert len(server.asked) == 4, "half open, one asks"
        await asyncio.sleep(0.35)
        server.answer = in_turn(Reply({}))
        assert await client.post(b"{}") == JsonAnswer({})
        assert await asyncio.gather(*(client.post(b"{}") for _ in range(4))) == [JsonAnswer({})] * 4


async def test_one_bad_moment_of_many_requests_does_not_open_it() -> None:
    """Each is tried again first: a post counts when its attempts are spent."""
    seen = 0

    def once_each(_: Asked) -> Reply:
        nonlocal seen
        seen += 1
        return Reply(status=503) if seen <= 4 else Reply({})

    async with asking(once_each, breaker=Breaker(2, 60)) as (client, _):
        assert await asyncio.gather(*(client.post(b"{}") for _ in range(4))) == [JsonAnswer({})] * 4


async def test_a_refusal_is_no_sign_of_illness() -> None:
    async with asking(in_turn(Reply(status=400)), breaker=Breaker(1, 60)) as (client, server):
        for _ in range(3):
            assert failure(await client.post(b"{}")).kind == "bad_input"
        assert len(server.asked) == 3


async def test_no_header_shows_even_where_the_server_repeats_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)

    def repeats(asked: Asked) -> Reply:
        return Reply({"error": f"bad key {asked.headers['authorization']}", "again": SECRET.split()[1]}, 401)

    async with asking(repeats, headers={"authorization": SECRET}) as (client, _):
        fault = failure(await client.post(b"{}"))
        seen = "\n".join([fault.message, repr(client), str(vars(client._breaker)), caplog.text])
    assert "s3cret" not in seen
    assert "***" in fault.message


@pytest.mark.parametrize("value", ["line\nbreak", "snowman ☃", " padded "])
def test_a_header_that_cannot_be_sent_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(InvalidRequest, match="'x-key'") as refused:
        JsonClient("http://a/", timeout=1, attempts=1, concurrency=1, headers={"x-key": value})
    assert value not in str(refused.value)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with asking(in_turn(Reply({}))) as (client, _):
        assert await client.post(b"{}") == JsonAnswer({})


async def test_before_start_and_after_close() -> None:
    client = JsonClient("http://127.0.0.1:9/", timeout=1, attempts=1, concurrency=1)
    with pytest.raises(InvalidState):
        await client.post(b"{}")
    await client.start()
    await client.close()
    await client.close()
    assert failure(await client.post(b"{}")).kind == "unavailable"


@pytest.mark.parametrize(
    ("url", "hosts", "allowed"),
    [
        ("http://a.example/x", ("a.example",), True),
        ("https://A.example:8443/x", ("a.EXAMPLE",), True),
        ("http://a.example:81/", ("a.example:81",), True),
        ("https://a.example/", ("a.example:443",), True),
        ("http://a.example/", ("a.example:443",), False),
        ("http://b.a.example/", ("a.example",), False),
        ("http://a.example.evil/", ("a.example",), False),
        ("http://[::1]:9000/", ("[::1]:9000",), True),
        ("http://[::1]/", ("[::1]",), True),
        ("http://127.1/", ("127.0.0.1",), False),
        ("http://a.example/", (), False),
    ],
)
def test_hosts(url: str, hosts: tuple[str, ...], allowed: bool) -> None:
    assert is_allowed(parsed_url(url), hosts) is allowed


@pytest.mark.parametrize(
    "url",
    ["a.example", "ftp://a/", "file:///etc/passwd", "http://", "http://me:pw@a/", "http://a/#b", "http://a\nb/"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        parsed_url(url)


def test_a_user_name_does_not_hide_the_host() -> None:
    assert httpx.URL("http://a.example@evil/").host == "evil"
