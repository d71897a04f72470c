"""Tries a grader before a job runs: `python -m headrace_rewards check`, JSON in on stdin, JSON out on stdout.

    in   {"grader": {…}, "samples": [{"output_text", "item", "messages", …}, …]}      samples are optional
    out  {"ok": true,  "error": null, "grader": {… with absolute paths}, "outcomes": [{"type": "score", …}, …]}
         {"ok": false, "error": {"message", "param", "code"}, "grader": null, "outcomes": []}

`ok` says that the grader can be used: it is well formed, and its file could be imported (in a process of its own). What
it makes of each sample is in `outcomes`; a failed sample leaves `ok` true. The samples are scored as one group. The
exit status is 0 whenever an answer was written.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace_core.errors import HeadraceError, InvalidRequest
from headrace_core.reward_rules import RewardRules
from headrace_rewards.protocol import Outcome, Sample
from headrace_rewards.registry import build, validate


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What stdin holds."""

    grader: Any
    samples: list[Sample] = []
    rules: RewardRules = RewardRules()


class Problem(msgspec.Struct):
    """Why a grader cannot be used."""

    message: str
    param: str | None
    code: str


class Report(msgspec.Struct):
    """What stdout gets."""

    ok: bool
    error: Problem | None
    grader: dict[str, Any] | None = None
    outcomes: list[Outcome] = []


async def check(body: bytes) -> Report:
    """The report on one request; a fault of the user's is in the report, a fault of ours is raised."""
    try:
        request = _parse(body)
        spec = validate(request.grader)
        return Report(True, None, spec.model_dump(), await _try(request))
    except HeadraceError as fault:
        return Report(False, Problem(fault.message, fault.param, fault.code))


async def _try(request: Request) -> list[Outcome]:
    reward = build(request.grader, request.rules)
    await reward.start()
    try:
        return await reward.score(request.samples)
    finally:
        await reward.close()


def _parse(body: bytes) -> Request:
    try:
        return msgspec.json.decode(body, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise InvalidRequest(f"not a request to check a grader: {fault}") from None
