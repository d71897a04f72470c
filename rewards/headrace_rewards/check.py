"""Tries a grader before a job runs: `python -m headrace_rewards check`, JSON in on stdin, JSON out on stdout.

    in   {"grader": {…}, "samples": [{"output_text", "item", "messages", …}, …], "groups": [2, 1, …]}
    out  {"ok": true,  "error": null, "grader": {… with absolute paths},
          "outcomes": [{"type": "score", …}, …], "seconds": [0.01, …], "parts": [{"name", "type", "failures"}, …]}
         {"ok": false, "error": {"message", "param", "code"}, "grader": null, "outcomes": [], …}

`ok` says that the grader can be used: it is well formed, and its file could be imported (in a process of its own). What
it makes of each sample is in `outcomes`; a failed sample leaves `ok` true. `groups` says how many neighbours among the
samples are completions of one prompt; those are scored together, and one group after the other, each in so many
`seconds`. Without it all are one group. Both are optional. `parts` are the grader and those that it holds, which come
before it. The exit status is 0 whenever an answer was written.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from headrace_core.errors import HeadraceError, InvalidRequest
from headrace_core.reward_rules import RewardRules
from headrace_rewards.protocol import Failure, Outcome, Reward, Sample
from headrace_rewards.registry import Builder, require_processes, validate
from headrace_rewards.specs import GraderSpec


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What stdin holds."""

    grader: Any
    samples: list[Sample] = []
    groups: list[int] | None = None
    rules: RewardRules = RewardRules()


class Problem(msgspec.Struct):
    """Why a grader cannot be used."""

    message: str
    param: str | None
    code: str


class Part(msgspec.Struct):
    """A grader, or one that it holds."""

    name: str
    type: str
    failures: list[Failure] = []
    """Its own: where a grader that it holds failed, those of the same group are that one's."""


class Report(msgspec.Struct):
    """What stdout gets."""

    ok: bool
    error: Problem | None
    grader: dict[str, Any] | None = None
    outcomes: list[Outcome] = []
    seconds: list[float] = []
    parts: list[Part] = []


def main() -> None:
    """Answer the request on stdin."""
    report = asyncio.run(check(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


async def check(body: bytes) -> Report:
    """The report on one request; a fault of the user's is in the report, a fault of ours is raised."""
    try:
        return await _checked(_parse(body))
    except HeadraceError as fault:
        return Report(False, Problem(fault.message, fault.param, fault.code))


@dataclass(frozen=True, slots=True)
class _Watching(Builder):
    """Makes rewards that note their failures in `parts`."""

    parts: list[Part] = field(default_factory=list)

    def build(self, spec: GraderSpec) -> Reward:
        first = len(self.parts)
        reward = Builder.build(self, spec)
        part, held = Part(spec.name, spec.type), self.parts[first:]
        self.parts.append(part)
        return _Watched(reward, part, held)


@dataclass(frozen=True, slots=True)
class _Watched:
    """A reward that notes its failures in `part`."""

    reward: Reward
    part: Part
    held: Sequence[Part]

    async def start(self) -> None:
        await self.reward.start()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        before = self._failures_held()
        outcomes = await self.reward.score(samples)
        if self._failures_held() == before:
            self.part.failures += [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        return outcomes

    async def close(self) -> None:
        await self.reward.close()

    def _failures_held(self) -> int:
        return sum(len(part.failures) for part in self.held)


async def _checked(request: Request) -> Report:
    groups = list(_groups(request))
    try:
        spec = validate(request.grader)
    except RecursionError:
        raise InvalidRequest("graders are nested too deep", param="grader") from None
    report = Report(True, None, spec.model_dump())
    require_processes(spec, request.rules)
    rules = request.rules if request.samples else msgspec.structs.replace(request.rules, most_workers=1)
    reward = _Watching(rules, report.parts).build(spec)
    await reward.start()
    try:
        for group in groups:
            start = time.monotonic()
            report.outcomes += await reward.score(group)
            report.seconds.append(time.monotonic() - start)
    finally:
        await reward.close()
    return report


def _groups(request: Request) -> Iterator[list[Sample]]:
    sizes = [len(request.samples)] if request.groups is None else request.groups
    if min(sizes, default=0) < 0 or sum(sizes) != len(request.samples):
        raise InvalidRequest(f"groups add up to {sum(sizes)}, and there are {len(request.samples)} samples")
    start = 0
    for size in filter(None, sizes):
        yield request.samples[start : start + size]
        start += size


def _parse(body: bytes) -> Request:
    try:
        return msgspec.json.decode(body, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise InvalidRequest(f"not a request to check a grader: {fault}") from None
