"""A grader is checked where its code may run: in a process of the rewards service, never in the gateway."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec

from headrace_core.errors import InvalidRequest, TimedOut, Unavailable
from headrace_core.reward_rules import RewardRules

CHECK_SECONDS = 120.0
PARAM = "method.reinforcement.grader"


async def checked_grader(grader: dict[str, Any], rules: RewardRules) -> dict[str, Any]:
    """The grader, complete. Raises `InvalidRequest` for one that cannot work; its message says why."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace_rewards", "check"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    question = msgspec.json.encode({"grader": grader, "rules": rules})
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            out, err = await process.communicate(question)
    except TimeoutError as error:
        raise TimedOut(f"the check of the grader took longer than {CHECK_SECONDS:.0f} s", param=PARAM) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        verdict = msgspec.json.decode(out)
    except ValueError as error:
        raise Unavailable(f"the check of the grader ended with {process.returncode}: {err.decode()[-500:]}") from error
    if not verdict["ok"]:
        found = verdict["error"]
        param = ".".join(p for p in (PARAM, (found.get("param") or "").removeprefix("grader").lstrip(".")) if p)
        raise InvalidRequest(found["message"], param=param, code=found["code"])
    complete: dict[str, Any] = verdict["grader"]
    return complete
