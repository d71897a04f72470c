"""Tries a grader before a job runs: `python -m headrace_rewards check`, JSON in on stdin, JSON out on stdout.

    stdin  headrace_core.protocols.grader_check.CheckRequest      stdout  CheckReport

A function whose `form` is not given is tried with texts; if it fails on them like a function that expects messages, it
is tried again with lists of messages. The grader in the report has the form that worked.

In a `rehearsal` no request is sent to a server, and groups that are not scored within `seconds` are abandoned. The
report's `cannot` then says why the grader cannot work at all, and `remarks` what else was noticed: see `rehearsal`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from headrace_core.errors import HeadraceError, InvalidRequest
from headrace_core.protocols.grader_check import CheckReport, CheckRequest, RequestProblem

from .graders.spec import GraderSpec
from .protocol import Sample
from .registry import require_processes, validate
from .rehearsal import RecordedReward, RecordingBuilder, refusal, with_form, with_stored_code
from .sandbox.level_probe import probe_in_child


def prepare() -> None:
    """Do what every check needs once, in the process from which the checks are forked (`fork_server` of the gateway):
    load a slow library, and probe the sandbox."""
    import tokenizers  # noqa: F401

    probe_in_child()


def main() -> None:
    """Read one request from stdin, and write its report to stdout."""
    report = asyncio.run(check(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


async def check(body: bytes) -> CheckReport:
    """The report on one request. A user's error is part of the report; an error of the service is raised."""
    try:
        return await _run_check(_parse(body))
    except HeadraceError as fault:
        return CheckReport(False, RequestProblem.of(fault))


async def _run_check(request: CheckRequest[Sample]) -> CheckReport:
    groups = list(_groups(request))
    try:
        spec = validate(request.grader)
    except RecursionError:
        raise InvalidRequest("graders are nested too deep", param="grader") from None
    require_processes(spec, request.rules)
    if request.rules.code is not None:
        spec = with_stored_code(spec, request.rules, Path(request.rules.code))
    report, recorded = await _score_groups(spec, request, groups)
    chosen = [part for part in recorded if _form_is_undecided(part.spec) and part.wants_messages]
    if chosen:
        changed = with_form(spec, frozenset(id(part.spec) for part in chosen), "messages")
        other, recorded_again = await _score_groups(changed, request, groups)
        if not any(new.always_raised for old, new in zip(recorded, recorded_again, strict=True) if old in chosen):
            return other
    return report


def _form_is_undecided(spec: GraderSpec) -> bool:
    return "form" in type(spec).model_fields and getattr(spec, "form", None) is None


async def _score_groups(
    spec: GraderSpec, request: CheckRequest[Sample], groups: Sequence[Sequence[Sample]]
) -> tuple[CheckReport, Sequence[RecordedReward]]:
    # A rehearsal scores few completions: one process is enough, and starts sooner.
    may_use_all_workers = bool(request.samples) and not request.rehearsal
    rules = request.rules if may_use_all_workers else msgspec.structs.replace(request.rules, max_workers=1)
    builder = RecordingBuilder(rules, request.rehearsal)
    reward, report = builder.build(spec), CheckReport(True, None)
    await reward.start()
    try:
        async with asyncio.timeout(request.seconds):
            for group in groups:
                start = time.monotonic()
                report.outcomes += await reward.score(group)
                report.seconds.append(time.monotonic() - start)
    except TimeoutError:
        message = f"the grader was not done with {len(groups)} small groups of completions within {request.seconds:g} s"
        report.remarks.append(message)
    finally:
        await reward.close()
    undecided = frozenset(id(part.spec) for part in builder.recorded if groups and _form_is_undecided(part.spec))
    report.grader = with_form(spec, undecided, "text").model_dump()
    report.parts = [part.part for part in builder.recorded]
    report.ignored = [f"grader '{p.spec.name}': {message}" for p in builder.recorded for message in p.spec.ignored()]
    if request.rehearsal and groups:
        report.cannot = next(_refusals(builder.recorded, groups[0][0].item), None)
        report.remarks += filter(None, (part.remarks() for part in builder.recorded))
    return report, builder.recorded


def _refusals(recorded: Sequence[RecordedReward], item: dict[str, Any]) -> Iterator[str]:
    for part in recorded:
        if (failure := part.cannot_work(item)) is not None:
            yield refusal(part, failure)


def _groups(request: CheckRequest[Sample]) -> Iterator[Sequence[Sample]]:
    samples = request.samples if request.tokenizer is None else _tokenised(request.samples, request.tokenizer)
    sizes = [len(request.samples)] if request.groups is None else request.groups
    if min(sizes, default=0) < 0 or sum(sizes) != len(request.samples):
        raise InvalidRequest(f"groups add up to {sum(sizes)}, and there are {len(request.samples)} samples")
    start = 0
    for size in filter(None, sizes):
        yield samples[start : start + size]
        start += size


def _tokenised(samples: Sequence[Sample], file: str) -> list[Sample]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = (tokenizer.encode(sample.output_text, add_special_tokens=False).ids for sample in samples)
    return [replace(sample, token_ids=tuple(found)) for sample, found in zip(samples, ids, strict=True)]


def _parse(body: bytes) -> CheckRequest[Sample]:
    try:
        return msgspec.json.decode(body, type=CheckRequest[Sample])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise InvalidRequest(f"not a request to check a grader: {fault}") from None
