"""Checks are forked from a process that has imported everything: what they have of each other, and when they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidRequest, TimedOut, Unavailable
from headrace_core.protocols.grader_check import Score
from headrace_core.storage.dataset import read_rows
from headrace_gateway.chat.chat_pool import RayChatPool
from headrace_gateway.context import PRELOADED, GatewayContext
from headrace_gateway.grading import grader_checks
from headrace_gateway.limited_processes import fork_server
from headrace_gateway.limited_processes.forked_process import ForkServer
from headrace_gateway.limited_processes.json_process import EndedWithoutAnswer, ask, started
from headrace_gateway.models import prompt_process
from headrace_gateway.models.prompt_process import ENVIRONMENT, PromptChecks
from headrace_gateway.models.prompt_tokens import check_prompts
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.paths import ADDER
from headrace_lab.waiting import wait_until

from .conftest import GRADER, Controllers, Served, body
from .test_prompt_process import LOOPS, data, model_with

SEEN = "colorsys"
"""A module that the server imports, and that children change."""
PROBE = f"""
import json, os, sys, time, {SEEN} as seen
asked = json.load(sys.stdin)
before = getattr(seen, "left", None)
seen.left = asked["leave"]
if asked.get("exit"): os._exit(asked["exit"])
if asked.get("sleep"): open(asked["file"], "w").write(str(os.getpid())); time.sleep(asked["sleep"])
files = sorted(int(number) for number in os.listdir("/proc/self/fd"))[:-1]  # the last one is that of the listing
print(json.dumps({{"before": before, "files": files, "server": os.getppid()}}))
"""
GONE_SECONDS = 10.0


@pytest.fixture
async def probes(tmp_path: Path) -> AsyncIterator[ForkServer]:
    (tmp_path / "probe.py").write_text(PROBE)
    server = ForkServer([SEEN], {"PYTHONPATH": str(tmp_path)})
    yield server
    await server.close()


@pytest.fixture
async def forks() -> AsyncIterator[ForkServer]:
    """As the gateway has it."""
    server = ForkServer(PRELOADED, ENVIRONMENT)
    yield server
    await server.close()


async def probed(server: ForkServer, seconds: float = 30.0, **question: Any) -> dict[str, Any]:
    question = {"leave": "something"} | question
    return await ask("probe", question, dict[str, Any], seconds=seconds, what="the probe", run=server.run)


def number_in(file: Path) -> int:
    """The one that a probe writes."""
    wait_until(lambda: file.exists() and bool(file.read_text()), "the probe has begun", pause=0.01)
    return int(file.read_text())


async def written(file: Path) -> int:
    """See `number_in`; meanwhile the loop goes on."""
    return await asyncio.to_thread(number_in, file)


def await_end(*pids: int) -> None:
    """Wait until these processes have ended."""
    wait_until(lambda: not any(map(_runs, pids)), f"the processes {pids} have ended", GONE_SECONDS, pause=0.01)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_question_that_cannot_be_sent_is_an_error_of_its_own_and_leaves_the_server_to_the_others(
    probes: ForkServer, tmp_path: Path
) -> None:
    file = tmp_path / "begun"
    other = asyncio.create_task(probed(probes, sleep=2.0, file=str(file)))
    await written(file)
    with pytest.raises(OSError, match="Message too long"):
        await probes.run("x" * 10_000_000, b"")
    assert (await other)["server"] == probes.pid


# ── what they have of each other ─────────────────────────────────────────────────────────────────────────────────────


async def test_none_finds_what_another_has_left(probes: ForkServer) -> None:
    found = [await probed(probes, leave=f"secret {n}") for n in range(3)]
    assert [each["before"] for each in found] == [None] * 3
    assert {each["server"] for each in found} == {probes.pid}  # forked, all from one


async def test_none_has_a_file_of_another(probes: ForkServer, tmp_path: Path) -> None:
    other = asyncio.create_task(probed(probes, sleep=60.0, file=str(tmp_path / "pid"), seconds=1.0))
    await written(tmp_path / "pid")
    assert (await probed(probes))["files"] == [0, 1, 2]
    with pytest.raises(TimedOut):
        await other


async def test_code_of_users_runs_in_no_process_that_was_forked_from_it(forks: ForkServer, tmp_path: Path) -> None:
    code = (
        "import sys, os\ndef r(completion): return {m: float(m in sys.modules) for m in ('msgspec', 'httpx', 'jinja2')}"
    )
    (tmp_path / "r.py").write_text(code)
    grader = {"type": "function", "name": "r", "function": f"{tmp_path}/r.py:r"}
    verdict = await grader_checks.check_grader(
        grader, RewardPermissions(), samples=[{"output_text": "a"}], run=forks.run
    )
    (outcome,) = verdict.outcomes
    assert isinstance(outcome, Score)
    assert outcome.components == {"msgspec": 1.0, "httpx": 0.0, "jinja2": 0.0}


# ── the same answers ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_check_finds_what_one_that_is_started_anew_finds(forks: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def r(completion): return float(completion)\n")
    function = {"type": "function", "name": "r", "function": f"{tmp_path}/r.py:r"}
    samples = [{"output_text": text, "item": {"answer": "1"}} for text in ("1", "one")]
    for grader in (GRADER, function):
        verdicts = [
            await grader_checks.check_grader(grader, RewardPermissions(), samples=samples, run=run)
            for run in (started, forks.run)
        ]
        (one, two), seconds = ([verdict.outcomes for verdict in verdicts], [verdict.seconds for verdict in verdicts])
        assert one == two
        assert [len(each) for each in seconds] == [1, 1]
    with pytest.raises(InvalidRequest, match="there is no grader of type 'none'"):
        await grader_checks.check_grader({"type": "none"}, RewardPermissions(), run=forks.run)


async def test_prompts_are_counted_within_the_limits(
    forks: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, file = PromptChecks(forks.run), ADDER / "validation.jsonl"
    found = await checks.measured(ADDER / "model", file, "validation.jsonl", None, 1000, None)
    assert found == check_prompts(ADDER / "model", read_rows(file), "validation.jsonl", 1000)
    monkeypatch.setattr(prompt_process, "MEMORY_BYTES", 1 << 29)
    (tmp_path / "model").mkdir()
    endless = model_with(tmp_path / "model", LOOPS.format("{{ i ~ 'x' * 9999 }}"))
    with pytest.raises(InvalidRequest, match=r"needs more than 0\.5 GiB of memory"):
        await checks.measured(endless, data(tmp_path, "1"), "train.jsonl", None, 1000, None)


async def test_what_all_would_find_out_is_found_out_once_it_is_idle(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "ahead.py").write_text(f"def find_out():\n    import {SEEN} as seen\n    seen.left = 'found out'\n")
    server = ForkServer([f"{SEEN}", "ahead:find_out"], {"PYTHONPATH": str(tmp_path)})
    try:
        assert (await probed(server))["before"] is None  # whoever asks is not kept waiting
        found = None
        for _ in range(10):
            await asyncio.sleep(fork_server.IDLE_SECONDS + 0.5)  # each question begins it anew
            if (found := (await probed(server))["before"]) is not None:
                break
        assert found == "found out"
    finally:
        await server.close()


# ── their end ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_one_that_takes_too_long_is_ended_before_its_caller_is_told(probes: ForkServer, tmp_path: Path) -> None:
    await probed(probes)  # the server has imported
    with pytest.raises(TimedOut, match="the probe took longer than 1 s"):
        await probed(probes, sleep=60.0, file=str(tmp_path / "pid"), seconds=1.0)
    assert not _runs(number_in(tmp_path / "pid"))


async def test_one_that_dies_says_how(probes: ForkServer, tmp_path: Path) -> None:
    with pytest.raises(EndedWithoutAnswer, match="the probe ended with 3"):
        await probed(probes, exit=3)
    dying = asyncio.create_task(probed(probes, sleep=60.0, file=str(tmp_path / "pid")))
    os.kill(await written(tmp_path / "pid"), signal.SIGSEGV)
    with pytest.raises(EndedWithoutAnswer, match="the probe ended with -11"):
        await dying
    with pytest.raises(EndedWithoutAnswer, match="No module named nothing"):
        await ask("nothing", {}, dict[str, Any], seconds=30, what="it", run=probes.run)


async def test_a_question_larger_than_any_buffer_arrives_whole_and_one_that_nobody_reads_holds_up_nothing(
    probes: ForkServer,
) -> None:
    assert (await probed(probes, leave="x" * 5_000_000))["before"] is None
    with pytest.raises(EndedWithoutAnswer, match="No module named nothing"):
        await ask("nothing", "x" * 5_000_000, dict[str, Any], seconds=30, what="it", run=probes.run)


async def test_what_was_lost_with_the_server_runs_again_from_another(probes: ForkServer, tmp_path: Path) -> None:
    first = (await probed(probes))["server"]
    asked = asyncio.create_task(probed(probes, sleep=60.0, file=str(tmp_path / "pid")))
    child = await written(tmp_path / "pid")
    (tmp_path / "pid").unlink()
    os.kill(first, signal.SIGKILL)
    await_end(child)
    again = await written(tmp_path / "pid")
    second = psutil.Process(again).ppid()
    assert probes.pid == second != first
    os.kill(second, signal.SIGKILL)
    with pytest.raises(Unavailable, match="was ended while it was asked, twice"):
        await asked
    await_end(again)
    assert (await probed(probes))["server"] not in (first, second)


def test_all_end_with_the_gateway(tmp_path: Path) -> None:
    """However that ends: it is killed here."""
    (tmp_path / "probe.py").write_text(PROBE)
    question = json.dumps({"leave": "", "sleep": 600.0, "file": str(tmp_path / "pid")})
    program = (
        "import asyncio\nfrom headrace_gateway.limited_processes.forked_process import ForkServer\n"
        f"server = ForkServer([{SEEN!r}], {{'PYTHONPATH': {str(tmp_path)!r}}})\n"
        f"asyncio.run(server.run('probe', {question.encode()!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as gateway:
        child = number_in(tmp_path / "pid")
        server = psutil.Process(child).ppid()
        gateway.kill()
    await_end(child, server)


async def test_it_ends_when_it_is_closed(probes: ForkServer) -> None:
    server = (await probed(probes))["server"]
    await probes.close()
    assert not _runs(server)


def test_what_leaves_a_thread_is_not_forked() -> None:
    program = (
        "import threading\nfrom headrace_gateway.limited_processes import fork_server\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "fork_server.preload(['colorsys'])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "RuntimeError: what was imported has left 1 threads: that cannot be forked" in ended.stderr


# ── in the gateway ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shared_forks(forks: ForkServer) -> ForkServer:
    """Here the gateway's is its own."""
    return forks


def servers() -> set[int]:
    children = psutil.Process().children()
    return {c.pid for c in children if "headrace_gateway.limited_processes.fork_server" in " ".join(c.cmdline())}


async def test_submissions_are_checked_by_forked_processes(
    served: Served, client: AsyncOpenAI, training_file: str, forks: ForkServer
) -> None:
    others = servers()
    assert forks.pid is None
    for _ in range(2):
        await client.post("/fine_tuning/jobs", body=body(training_file), cast_to=object)
    (server,) = servers() - others
    os.kill(server, signal.SIGKILL)
    await client.post("/fine_tuning/jobs", body=body(training_file), cast_to=object)
    assert server not in servers()


async def test_an_operator_may_do_without(tmp_path: Path, redis: Redis, redis_server: RedisServer) -> None:
    settings, others = Settings(data_dir=tmp_path, fork_server=False), servers()
    gateway = GatewayContext.over(settings, redis, Controllers(), RayChatPool(settings, redis))
    assert gateway.fork_server is None
    verdict = await gateway.trials.verdict(GRADER, [{"output_text": "93", "item": {"answer": "93"}}])
    (outcome,) = verdict.outcomes
    assert isinstance(outcome, Score)
    assert outcome.value == 1.0
    assert servers() == others
