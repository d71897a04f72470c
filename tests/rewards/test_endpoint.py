"""`endpoint`: what it asks, how the answers are read, and that groups share requests. A real server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest, InvalidState
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_lab.rewards import started
from headrace_rewards.protocol import PolicyMeasurements, Reward, Sample, SampleKey
from headrace_rewards.registry import build, validate

from .http_server import Answerer, Asked, Reply, Server, serving


def described(url: str, **fields: Any) -> dict[str, Any]:
    return {"type": "endpoint", "name": "remote", "url": url, **fields}


@asynccontextmanager
async def asking(answer: Answerer, **fields: Any) -> AsyncIterator[tuple[Reward, Server]]:
    """A started endpoint, and its server."""
    async with serving(answer) as server:
        reward = build(described(f"{server.url}/grade", **fields), RewardPermissions(hosts=(server.host,)))
        async with started(reward):
            yield reward, server


def lengths(asked: Asked) -> Reply:
    return Reply({"rewards": [len(sample["output_text"]) for sample in asked.body["samples"]]})


def group(*texts: str) -> list[Sample]:
    return [Sample(text, {"answer": 42}, [{"role": "user", "content": "6*7?"}]) for text in texts]


def kinds(outcomes: list[Outcome]) -> list[Any]:
    return [outcome.kind if isinstance(outcome, Failure) else outcome for outcome in outcomes]


async def test_what_is_asked() -> None:
    measured = PolicyMeasurements((-0.5, -0.5))
    sample = Sample("42", {"answer": 42}, [], "length", (1, 2), SampleKey(0, 1), measured=measured)
    async with asking(lengths) as (reward, server):
        assert await reward.score([sample]) == [Score(2.0)]
    assert server.asked[0].path == "/grade"
    assert server.asked[0].body == {
        "samples": [{"output_text": "42", "item": {"answer": 42}, "messages": [], "finish_reason": "length"}]
    }


async def test_rewards_are_read_as_a_functions_are() -> None:
    rewards = [0.5, None, {"right": 1, "short": 0.25}, {"error": "no\nsuch test"}, "1.0", {}, True]
    async with asking(lambda _: Reply({"rewards": rewards})) as (reward, _):
        outcomes = await reward.score(group(*"abcdefg"))
    assert outcomes[:3] == [Score(0.5), NotApplicable(), Score(1.25, {"right": 1.0, "short": 0.25})]
    assert outcomes[3] == Failure("exception", "the endpoint: no such test")
    assert kinds(outcomes[4:6]) == ["invalid_value", "invalid_value"]
    assert outcomes[6] == Score(1.0)
    assert isinstance(outcomes[4], Failure)
    assert "the endpoint returned '1.0'" in outcomes[4].message


@pytest.mark.parametrize("answer", [{"rewards": [1.0]}, {"rewards": 1}, [1.0, 1.0], {"reward": [1, 1]}], ids=repr)
async def test_an_answer_of_another_shape_fails_every_sample(answer: Any) -> None:
    async with asking(lambda _: Reply(answer)) as (reward, _):
        assert kinds(await reward.score(group("a", "b"))) == ["bad_output", "bad_output"]


async def test_groups_that_arrive_together_share_requests_and_get_their_own_rewards() -> None:
    async with asking(lengths, batch_size=8, concurrency=2) as (reward, server):
        groups = [group(*("x" * (3 * number + place + 1) for place in range(3))) for number in range(6)]
        scored = await asyncio.gather(*map(reward.score, groups))
    assert scored == [[Score(3.0 * number + place + 1) for place in range(3)] for number in range(6)]
    sizes = [len(asked.body["samples"]) for asked in server.asked]
    assert sum(sizes) == 18
    assert sorted(sizes, reverse=True)[:2] == [8, 8]


async def test_one_request_that_fails_fails_its_own_samples_only() -> None:
    def picky(asked: Asked) -> Reply:
        return Reply(status=400) if asked.body["samples"][0]["output_text"] == "b" else lengths(asked)

    async with asking(picky, batch_size=1) as (reward, _):
        outcomes = await reward.score(group("a", "b", "c"))
    assert kinds(outcomes) == [Score(1.0), "bad_input", Score(1.0)]


async def test_a_row_that_is_no_json_does_not_spoil_its_neighbours() -> None:
    async with asking(lengths) as (reward, server):
        outcomes = await reward.score(group("a", "\ud800", "ccc"))
        assert kinds(await reward.score(group("\ud800"))) == ["bad_input"]
    assert kinds(outcomes) == [Score(1.0), "bad_input", Score(3.0)]
    assert len(server.asked) == 1


async def test_headers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_ENDPOINT_TOKEN", "Bearer s3cret")
    names = {"Authorization": "REWARD_ENDPOINT_TOKEN"}
    async with asking(lengths, headers_env=names) as (reward, server):
        await reward.score(group("a"))
        server.answer = lambda asked: Reply({"rewards": [{"error": f"not you, {asked.headers['authorization']}"}]})
        (refused,) = await reward.score(group("a"))
    assert server.asked[0].headers["authorization"] == "Bearer s3cret"
    assert refused == Failure("exception", "the endpoint: not you, ***")


async def test_close_ends_what_is_in_flight() -> None:
    arrived = asyncio.Event()

    async def never(_: Asked) -> Reply:
        arrived.set()
        await asyncio.sleep(60)
        raise AssertionError("it was waited for")

    async with asking(never, batch_size=1, concurrency=1) as (reward, _):
        scoring = asyncio.create_task(reward.score(group("a", "b")))
        await arrived.wait()
        await reward.close()
        assert kinds(await scoring) == ["unavailable", "unavailable"]
        assert kinds(await reward.score(group("a"))) == ["unavailable"]
        await reward.close()


async def test_a_caller_that_gave_up_does_not_block_the_others() -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def when_told(asked: Asked) -> Reply:
        arrived.set()
        await release.wait()
        return lengths(asked)

    async with asking(when_told, batch_size=1, concurrency=1) as (reward, server):
        impatient = asyncio.create_task(reward.score(group("a", "b", "c")))
        await arrived.wait()
        impatient.cancel()
        patient = asyncio.create_task(reward.score(group("dd")))
        release.set()
        assert await patient == [Score(2.0)]
        texts = [asked.body["samples"][0]["output_text"] for asked in server.asked]
    assert texts == ["a", "dd"]


async def test_it_must_be_started() -> None:
    reward = build(described("http://127.0.0.1:1/"), RewardPermissions(hosts=("127.0.0.1",)))
    with pytest.raises(InvalidState):
        await reward.score(group("a"))
    await reward.close()


@pytest.mark.parametrize("hosts", [(), ("localhost",), ("127.0.0.1:2",)])
def test_only_hosts_that_the_operator_listed(hosts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="HEADRACE_REWARD_HOSTS") as refused:
        build(described("http://127.0.0.1:1/"), RewardPermissions(hosts=hosts))
    assert refused.value.param == "grader.url"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"url": "ftp://a/"}, "grader.url"),
        ({"batch_size": 0}, "grader.batch_size"),
        ({"attempts": 99}, "grader.attempts"),
        ({"headers_env": {"Authorization": "HEADRACE_JUDGE_KEY"}}, "grader.headers_env"),
        ({"headers_env": {"Authorization": "AWS_SECRET_ACCESS_KEY"}}, "grader.headers_env"),
        ({"headers_env": {"Host": "REWARD_ENDPOINT_X"}}, "grader.headers_env"),
        ({"headers_env": {"X: y\r\nZ": "REWARD_ENDPOINT_X"}}, "grader.headers_env"),
        ({"headers": {"Authorization": "in the open"}}, "grader.headers"),
    ],
)
def test_descriptions_that_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        validate({**described("http://a/"), **fields})
    assert refused.value.param == param


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(InvalidRequest, match="REWARD_ENDPOINT_NONE"):
        build(described("http://a/", headers_env={"X": "REWARD_ENDPOINT_NONE"}), RewardPermissions(hosts=("a",)))
