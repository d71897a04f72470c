"""`endpoint`: a server of the user that scores completions over HTTP, in batches.

    → POST url  {"samples": [{"output_text", "item", "messages", "finish_reason"}, …]}
    ← 200       {"rewards": [0.5, null, {"right": 1, "short": 0.2}, {"error": "no such test"}, …]}

The answer has one reward per sample, in order, each read like a function's return value (see `return_values`);
`{"error": "…"}` means that this sample could not be scored. Completions of several groups that arrive together share a
request. The operator lists the allowed hosts. `http_client` describes what happens with a server that is slow, broken
or hostile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, Field

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome

from ..batching import Batcher
from ..http_client import JsonAnswer, JsonClient, is_allowed, parsed_url
from ..protocol import Sample, score_wanted
from ..user_code.return_values import to_outcome
from .spec import GraderSpec

VARIABLE_PREFIX = "REWARD_ENDPOINT_"
"""Only environment variables with this prefix may be sent as headers, so that a request cannot leak other secrets of
the service."""

_OWN_HEADERS = {"host", "connection", "content-length", "content-type", "transfer-encoding", "accept-encoding"}


def _address(text: str) -> str:
    return str(parsed_url(text))


def _headers(names: dict[str, str]) -> dict[str, str]:
    for header, variable in names.items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", header) or header.lower() in _OWN_HEADERS:
            raise ValueError(f"'{header}' is not a header that can be set here")
        if not re.fullmatch(VARIABLE_PREFIX + r"\w+", variable, re.ASCII):
            raise ValueError(f"'{variable}' is no variable whose name begins with {VARIABLE_PREFIX}")
    return names


class EndpointSpec(GraderSpec):
    """A spec contains no secrets: `headers_env` names the environment variables of the service that hold them."""

    type: Literal["endpoint"]
    url: Annotated[str, AfterValidator(_address)]
    batch_size: int = Field(default=32, ge=1, le=1024)
    """Most samples per request."""
    concurrency: int = Field(default=4, ge=1, le=64)
    """Most requests at the same time, from each rollout worker."""
    timeout: float = Field(default=30.0, gt=0, le=600)
    """Seconds for one attempt."""
    attempts: int = Field(default=3, ge=1, le=10)
    check_connection: bool = True
    """Whether a job is rejected if the server accepts no connection when the job is submitted. False for a server that
    is started later."""
    headers_env: Annotated[dict[str, str], AfterValidator(_headers)] = Field(default={})
    """Header → variable, such as {"Authorization": "REWARD_ENDPOINT_TOKEN"}."""


class Endpoint:
    """The reward of an `endpoint` grader. All groups share one client and one circuit breaker."""

    def __init__(self, spec: EndpointSpec, rules: RewardPermissions) -> None:
        """Raises `InvalidRequest` if the operator does not allow the host, or a variable of `headers_env` is not
        set."""
        url = parsed_url(spec.url)
        if not is_allowed(url, rules.hosts):
            raise InvalidRequest(
                f"rewards may not be asked at {url.netloc.decode()}: the operator has not listed it in "
                "HEADRACE_REWARD_HOSTS",
                param="grader.url",
            )
        self._check_connection = spec.check_connection
        self._client = JsonClient(
            spec.url,
            timeout=spec.timeout,
            attempts=spec.attempts,
            concurrency=spec.concurrency,
            headers={header: _variable(name) for header, name in spec.headers_env.items()},
        )
        self._batcher = Batcher(self._send, size=spec.batch_size, concurrency=spec.concurrency)

    async def start(self) -> None:
        """Sends no request yet: a server that is down now may be up when the first completion is scored."""
        await self._client.start()
        self._batcher.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome a sample, in order; see `Reward`."""
        return await score_wanted(samples, self._batcher.submit)

    async def rehearse(self, samples: Sequence[Sample]) -> list[Outcome]:
        """See `Rehearsable`: whether the server accepts a connection, and each sample can be encoded."""
        connection_failure = await self._client.connection_failure() if self._check_connection else None
        encoded = [_encoded(sample) for sample in samples]
        return [entry if isinstance(entry, Failure) else connection_failure or NotApplicable() for entry in encoded]

    async def close(self) -> None:
        """Close the connections; calls in flight return `unavailable`. Idempotent."""
        await self._batcher.close()
        await self._client.close()

    async def _send(self, samples: list[Sample]) -> list[Outcome]:
        encoded = [_encoded(sample) for sample in samples]
        valid = [entry for entry in encoded if isinstance(entry, msgspec.Raw)]
        outcomes = iter(await self._post(valid) if valid else [])
        return [entry if isinstance(entry, Failure) else next(outcomes) for entry in encoded]

    async def _post(self, samples: list[msgspec.Raw]) -> list[Outcome]:
        answer = await self._client.post(msgspec.json.encode({"samples": samples}))
        return [answer] * len(samples) if isinstance(answer, Failure) else self._read(answer, len(samples))

    def _read(self, answer: JsonAnswer, count: int) -> list[Outcome]:
        rewards = answer.value.get("rewards") if isinstance(answer.value, Mapping) else None
        if not isinstance(rewards, list):
            fault = 'the endpoint answered no {"rewards": […]}'
        elif len(rewards) != count:
            fault = f"the endpoint answered {len(rewards)} rewards for {count} samples"
        else:
            return [self._read_one(reward) for reward in rewards]
        return [Failure("bad_output", fault)] * count

    def _read_one(self, reward: Any) -> Outcome:
        if isinstance(reward, Mapping) and "error" in reward:
            return Failure("exception", f"the endpoint: {self._client.quoted(str(reward['error']))}")
        return to_outcome(reward, "the endpoint")


def _encoded(sample: Sample) -> msgspec.Raw | Failure:
    fields = {name: getattr(sample, name) for name in ("output_text", "item", "messages", "finish_reason")}
    try:
        return msgspec.Raw(msgspec.json.encode(fields))
    except (TypeError, ValueError, OverflowError) as fault:  # half a surrogate pair, say
        return Failure("bad_input", f"the row cannot be written as JSON: {fault}")


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise InvalidRequest(f"the service's environment has no {name}", param="grader.headers_env")
    return value
