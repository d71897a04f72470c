"""A user's function in its own process: every way it can go wrong is told apart, and touches no other sample.

Real processes throughout. Time limits are short only where the function under test never ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from headrace_core.config.reward_permissions import SandboxLevel
from headrace_core.errors import InvalidRequest, InvalidState
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_lab.rewards import score_once
from headrace_lab.waiting import wait_until_async
from headrace_rewards.graders.function import FunctionReward, FunctionSpec
from headrace_rewards.protocol import Sample
from headrace_rewards.sandbox.kernel.resource_limits import ResourceLimits

Start = Callable[..., Awaitable[FunctionReward]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """`await start(source, timeout=…)`: a started reward whose file holds `source`; its function is `grade`."""
    rewards: list[FunctionReward] = []

    async def begin(
        source: str, limits: ResourceLimits | None = None, level: SandboxLevel | None = None, **fields: Any
    ) -> FunctionReward:
        (tmp_path / "user.py").write_text(textwrap.dedent(source))
        spec = FunctionSpec(type="function", name="t", function=f"{tmp_path}/user.py:grade", **fields)
        reward = FunctionReward(spec, None, limits, level)
        rewards.append(reward)
        await reward.start()
        return reward

    yield begin
    for reward in rewards:
        await reward.close()


def samples(*texts: str) -> list[Sample]:
    return [Sample(text, {"answer": 42}, [{"role": "user", "content": "6*7?"}]) for text in texts]


def kinds(outcomes: list[Outcome]) -> list[Any]:
    """A value for a score, the kind for a failure, None for not applicable."""
    return [
        outcome.value if isinstance(outcome, Score) else outcome.kind if isinstance(outcome, Failure) else None
        for outcome in outcomes
    ]


def failure(outcome: Outcome) -> Failure:
    assert isinstance(outcome, Failure)
    return outcome


def hosts_of_this_process() -> set[psutil.Process]:
    """The reward processes that run now; others of the test session, its Redis say, are none of ours."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "headrace_rewards.sandbox.guard" in child.cmdline():
                found.add(child)
    return found


async def test_zero_none_and_failure_are_three_things(start: Start) -> None:
    reward = await start("""
        def grade(completion, answer):
            return {"right": float(int(completion) == answer)} if completion != "?" else None
        """)
    outcomes = await reward.score(samples("42", "41", "?", "x"))
    assert outcomes[:3] == [Score(1.0, {"right": 1.0}), Score(0.0, {"right": 0.0}), NotApplicable()]
    raised = failure(outcomes[3])
    assert raised.kind == "exception"
    assert raised.message == "ValueError: invalid literal for int() with base 10: 'x'"
    assert 'user.py", line 3, in grade' in raised.traceback
    assert "host.py" not in raised.traceback


async def test_what_is_raised_or_returned_wrongly_fails_its_own_sample(start: Start) -> None:
    reward = await start("""
        import math, sys
        def deep(n): return deep(n + 1)
        ACTS = {"nan": lambda: math.nan, "text": lambda: "1", "exit": lambda: sys.exit(2), "deep": lambda: deep(0),
                "interrupt": lambda: exec("raise KeyboardInterrupt"), "surrogate": lambda: {"\\ud800": 1.0},
                "big": lambda: {str(n): 1.0 for n in range(200_000)}, "one": lambda: 1}
        def grade(completion): return ACTS[completion]()
        """)
    acts = ("nan", "text", "exit", "one", "deep", "interrupt", "surrogate", "big", "one", "missing")
    outcomes = await reward.score(samples(*acts))
    assert dict(zip(acts, kinds(outcomes), strict=True)) == {
        "nan": "invalid_value",
        "text": "invalid_value",
        "exit": "exception",
        "one": 1.0,
        "deep": "exception",
        "interrupt": "exception",
        "surrogate": "invalid_value",
        "big": "bad_output",
        "missing": "exception",
    }
    assert "SystemExit: 2" in failure(outcomes[2]).message
    assert "RecursionError" in failure(outcomes[4]).message


async def test_a_crash_is_pinned_to_its_sample_and_the_others_are_scored(start: Start) -> None:
    reward = await start("""
        import ctypes, os, signal
        def grade(completion):
            if completion == "exit": print("last words"); os._exit(3)
            if completion == "segv": ctypes.string_at(0)
            if completion == "kill": os.kill(os.getpid(), signal.SIGKILL)
            return len(completion)
        """)
    outcomes = await reward.score(samples("a", "exit", "bb", "segv", "kill", "ccc"))
    assert kinds(outcomes) == [1.0, "crashed", 2.0, "crashed", "crashed", 3.0]
    exited, faulted, killed = (failure(outcomes[index]) for index in (1, 3, 4))
    assert exited.message == "the process exited with status 3"
    assert exited.traceback == "last words"
    assert faulted.message == "the process was killed by SIGSEGV"
    assert "user.py" in faulted.traceback
    assert killed.message == "the process was killed by SIGKILL"


async def test_a_hang_is_pinned_to_its_sample(start: Start) -> None:
    reward = await start(
        """
        def grade(completion):
            while completion == "loop": pass
            return 1
        """,
        timeout=0.5,
    )
    outcomes = await reward.score(samples("a", "loop", "b"))
    assert kinds(outcomes) == [1.0, "timeout", 1.0]
    assert failure(outcomes[1]).message == "took longer than 0.5 s"


async def test_prints_do_not_reach_the_protocol_and_stdin_is_empty(start: Start) -> None:
    reward = await start("""
        import os, sys
        print("at import")
        def grade(completion):
            print("hello"); os.write(1, b"\\x00\\x00\\x00\\x05{}"); os.system("echo from a child")
            return float(sys.stdin.read() == "" and os.read(0, 1) == b"")
        """)
    assert kinds(await reward.score(samples("a", "b"))) == [1.0, 1.0]


async def test_endless_output_is_cut_off(start: Start) -> None:
    reward = await start("""
        def grade(completion):
            while completion == "flood": print("spam " * 100)
            return 1
        """)
    outcomes = await reward.score(samples("a", "flood", "b"))
    assert kinds(outcomes) == [1.0, "bad_output", 1.0]
    assert failure(outcomes[1]).message == "printed more than 1048576 bytes for one call"
    assert "spam" in failure(outcomes[1]).traceback


async def test_a_moderate_print_for_each_of_many_samples_is_no_flood(start: Start) -> None:
    reward = await start("def grade(completion): print('x' * 100_000); return 1")
    assert kinds(await reward.score(samples(*"a" * 30))) == [1.0] * 30


async def test_an_answer_that_is_none_of_ours_ends_the_process(start: Start) -> None:
    reward = await start("""
        import os, socket, stat
        def grade(completion):
            if completion == "forge":
                for fd in range(3, 64):
                    try:
                        if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, completion.encode() * 1000)
                    except OSError: pass
            return 1
        """)
    assert kinds(await reward.score(samples("a", "forge", "b"))) == [1.0, "bad_output", 1.0]


async def test_a_fork_does_not_answer_twice(start: Start) -> None:
    reward = await start("""
        import os
        def grade(completion):
            os.fork()
            return len(completion)
        """)
    assert kinds(await reward.score(samples("a", "bb", "ccc"))) == [1.0, 2.0, 3.0]


async def test_memory_is_limited(start: Start) -> None:
    reward = await start(
        "def grade(completion): return len(bytearray(1 << 30)) if completion == 'big' else 1",
        ResourceLimits(memory_bytes=512 << 20),
    )
    outcomes = await reward.score(samples("big", "a"))
    assert kinds(outcomes) == ["exception", 1.0]
    assert "MemoryError" in failure(outcomes[0]).message


async def test_the_list_form_sees_the_group_at_once(start: Start) -> None:
    reward = await start("""
        def grade(completions, answer, **kwargs):
            if completions[0] == "short": return [1.0]
            return [None if text == "?" else len(text) / len(completions) for text in completions]
        """)
    assert kinds(await reward.score(samples("a", "?", "bbb", "cc"))) == [0.25, None, 0.75, 0.5]
    assert kinds(await reward.score(samples("short", "b"))) == ["invalid_value"] * 2
    assert await reward.score([]) == []


async def test_async_functions_run_at_once_and_time_out_alone(start: Start) -> None:
    reward = await start(
        """
        import asyncio, os
        arrived = 0
        everyone = asyncio.Event()
        async def grade(completion):
            global arrived
            if completion == "slow": await asyncio.sleep(60)
            if completion == "crash": os._exit(1)
            arrived += 1
            if arrived == 3: everyone.set()
            if completion == "meet": await everyone.wait()
            return 1
        """,
        timeout=2,
    )
    assert kinds(await reward.score(samples("meet", "slow", "meet", "meet"))) == [1.0, "timeout", 1.0, 1.0]
    assert kinds(await reward.score(samples("x", "crash", "y"))) == [1.0, "crashed", 1.0]


async def test_a_missing_column_fails_the_sample_with_what_the_row_has(start: Start) -> None:
    reward = await start("def grade(sample, rubric): return 1")
    [outcome] = await reward.score(samples("a"))
    assert outcome == Failure(
        "bad_input", "argument 'rubric' is neither a known name nor a key of the row (keys: answer)"
    )


async def test_a_row_that_is_no_valid_text_fails_alone(start: Start) -> None:
    reward = await start("def grade(item): return 1")
    outcomes = await reward.score([Sample("a"), Sample("a", {"k": "\ud800"}), Sample("a", {"k": 10**40})])
    assert kinds(outcomes) == [1.0, "bad_input", 1.0]


async def test_neighbours_of_the_file_can_be_imported(start: Start, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("VALUE = 7")
    reward = await start("import neighbour\ndef grade(item): return neighbour.VALUE")
    assert kinds(await reward.score(samples("a"))) == [7.0]
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef grade(sample, item:\n    pass", "user.py, line 2: SyntaxError: '(' was never closed"),
        ("x = 1\n\nimport no_such_module", "user.py, line 3: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def score(item): return 1", "has no 'grade'; it has: score"),
        ("grade = 3", "'grade' in "),
        ("from subprocess import getoutput as grade", "imports 'grade' from elsewhere"),
        ("import functools, os\ngrade = functools.partial(os.system)", "imports 'grade' from elsewhere"),
        ("from os import system, getcwd\ndef score(item): return 1", "has no 'grade'; it has: score"),
        ("def grade(): return 1", "takes no argument by name"),
        ("import sys; sys.exit(0)", "line 1: SystemExit: 0"),
        ("import os; print('bye'); os._exit(5)", "could not be imported: the process exited with status 5\nbye"),
        ("while True: pass", "longer than 1.5 s"),
        ("while True: print('spam' * 999)", "printed more than"),
    ],
)
async def test_a_file_that_does_not_load_is_a_clear_error(start: Start, source: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await start(source, ResourceLimits(start_seconds=1.5))
    assert message in refused.value.message
    assert refused.value.param == "grader.function"
    assert not hosts_of_this_process()


@pytest.mark.parametrize(
    "source",
    [
        "import functools\n@functools.cache\ndef grade(completion): return 1",
        "import functools\ndef score(completion, by): return by\ngrade = functools.partial(score, by=1)",
        "class Grader:\n    def __call__(self, completion): return 1\ngrade = Grader()",
        "class Grader:\n    def score(self, completion): return 1\ngrade = Grader().score",
    ],
)
async def test_what_a_file_makes_of_its_own_functions_is_its_own(start: Start, source: str) -> None:
    assert kinds(await (await start(source)).score(samples("a"))) == [1.0]


async def test_a_host_that_closes_its_socket_and_lives_is_found_at_once(start: Start) -> None:
    """Also where a process that it forked holds the socket open."""
    reward = await start(
        """
        import os, stat, time
        def grade(completion):
            if completion == "held by a child" and os.fork() == 0: time.sleep(60)
            for fd in range(3, 256):
                try:
                    if stat.S_ISSOCK(os.fstat(fd).st_mode): os.close(fd)
                except OSError: pass
            time.sleep(60)
        """,
        timeout=60,
    )
    began = time.monotonic()
    outcomes = await reward.score(samples("alone", "held by a child"))
    assert kinds(outcomes) == ["crashed", "crashed"]
    assert time.monotonic() - began < 20


async def test_an_answer_nested_beyond_reading_fails_its_sample_alone(start: Start) -> None:
    reward = await start(
        """
        import gc
        def grade(completion):
            if completion == "good": return 1
            from headrace_rewards.sandbox.host import Host
            channel = next(thing for thing in gc.get_objects() if isinstance(thing, Host))._channel
            body = b'{"type":"result","index":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
            channel._socket.sendall(len(body).to_bytes(4, "big") + body)
        """
    )
    assert kinds(await reward.score(samples("good", "bad", "good"))) == [1.0, "bad_output", 1.0]


async def test_a_forged_failure_is_not_longer_than_a_true_one(start: Start) -> None:
    reward = await start(
        """
        import gc, json
        def grade(completion):
            from headrace_rewards.sandbox.host import Host
            channel = next(thing for thing in gc.get_objects() if isinstance(thing, Host))._channel
            failure = {"type": "failure", "kind": "exception", "message": "x" * 400_000, "traceback": "y" * 400_000}
            body = json.dumps({"type": "result", "index": 0, "outcomes": [failure]}).encode()
            channel._socket.sendall(len(body).to_bytes(4, "big") + body)
        """
    )
    [outcome] = await reward.score(samples("a"))
    assert 1_000 <= len(failure(outcome).message) < 10_000
    assert 1_000 <= len(failure(outcome).traceback) <= 10_000


async def test_a_row_that_is_nested_beyond_writing_fails_alone(start: Start) -> None:
    reward = await start("def grade(completion): return 1")
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    outcomes = await reward.score([*samples("a"), Sample("b", {"deep": deep}), *samples("c")])
    assert kinds(outcomes) == [1.0, "bad_input", 1.0]


@pytest.mark.slow
async def test_a_scratch_folder_of_any_depth_is_removed(start: Start, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    source = """
        import os
        def grade(completion):
            os.symlink(os.path.dirname(__file__), "link")
            for number in range(3):
                os.makedirs(f".headrace-removed-{number}/inner")
            for _ in range(1_500):
                os.mkdir(b"\\xff-deep")
                open(b"file-\\xfe", "w").close()
                os.chdir(b"\\xff-deep")
            os.chmod("..", 0)
            return 1
        """
    for level in ("filtered", "limits"):
        reward = await start(source, level=level)
        assert kinds(await reward.score(samples("a"))) == [1.0]
        await reward.close()
        assert list((tmp_path / "scratch").iterdir()) == []
        assert (tmp_path / "user.py").exists()


async def test_a_process_that_starts_no_more_is_unavailable(start: Start, tmp_path: Path) -> None:
    reward = await start("import os\ndef grade(completion): os._exit(1)")
    (tmp_path / "user.py").write_text("syntax error")
    assert kinds(await reward.score(samples("a", "b"))) == ["crashed", "unavailable"]
    (tmp_path / "user.py").write_text("def grade(completion): return 5")
    assert kinds(await reward.score(samples("a", "b"))) == [5.0, 5.0]


async def test_workers_score_one_group_side_by_side(start: Start, tmp_path: Path) -> None:
    """Each of two samples waits until the other has begun: with one process both would time out."""
    reward = await start(
        """
        import pathlib, time
        def grade(completion, item):
            folder = pathlib.Path(item["folder"])
            (folder / completion).touch()
            other = folder / {"a": "b", "b": "a"}[completion]
            while not other.exists(): time.sleep(0.01)
            return 1
        """,
        level="limits",  # only there can two hosts write where the other sees it
        workers=2,
        timeout=20,
    )
    assert kinds(await reward.score([Sample(name, {"folder": str(tmp_path)}) for name in "ab"])) == [1.0, 1.0]


async def test_many_groups_at_once_keep_their_order_through_crashes(start: Start) -> None:
    reward = await start(
        """
        import os
        def grade(completion):
            if completion.endswith("13"): os._exit(1)
            return int(completion)
        """,
        workers=2,
    )
    groups = [[str(group * 10 + index) for index in range(8)] for group in range(30)]
    scored = await asyncio.gather(*(reward.score(samples(*group)) for group in groups))
    expected = [["crashed" if text.endswith("13") else float(text) for text in group] for group in groups]
    assert [kinds(outcomes) for outcomes in scored] == expected


async def test_a_cancelled_call_leaves_no_answers_for_the_next(start: Start, tmp_path: Path) -> None:
    reward = await start(
        """
        import pathlib, time
        def grade(completion, item):
            if completion == "slow": pathlib.Path(item["mark"]).touch(); time.sleep(60)
            return len(completion)
        """,
        level="limits",  # for the mark it writes
    )
    mark = tmp_path / "begun"
    task = asyncio.create_task(reward.score([Sample("slow", {"mark": str(mark)})]))
    await wait_until_async(mark.exists, "the function has begun")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kinds(await reward.score(samples("a", "bb"))) == [1.0, 2.0]


async def test_close_ends_calls_in_flight_and_every_process(start: Start, tmp_path: Path) -> None:
    reward = await start(
        """
        import pathlib, subprocess
        def grade(completion, item):
            child = subprocess.Popen(["sleep", "600"])
            pathlib.Path(item["folder"], completion).write_text(str(child.pid))
            child.wait()
        """,
        level="limits",  # for the marks it writes
        workers=2,
        timeout=500,
    )
    hosts = hosts_of_this_process()
    assert len(hosts) == 2
    task = asyncio.create_task(reward.score([Sample(name, {"folder": str(tmp_path)}) for name in "abcd"]))
    marks = [tmp_path / "a", tmp_path / "c"]
    await wait_until_async(
        lambda: all(mark.exists() and bool(mark.read_text()) for mark in marks), "every function has begun"
    )
    scratch = [Path(host.cwd()) for host in hosts]
    sleepers = [psutil.Process(int(mark.read_text())) for mark in marks]
    await reward.close()
    assert kinds(await task) == ["unavailable"] * 4
    assert kinds(await reward.score(samples("a"))) == ["unavailable"]
    _, alive = psutil.wait_procs([*hosts, *sleepers], timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not any(folder.exists() for folder in scratch)
    await reward.close()


async def test_scoring_before_start_is_a_fault_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def grade(item): return 1")
    reward = FunctionReward(FunctionSpec(type="function", name="t", function=f"{tmp_path}/user.py:grade"))
    with pytest.raises(InvalidState):
        await reward.score(samples("a"))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_works_in_the_event_loop_of_another_thread(run: Callable[..., Any], tmp_path: Path) -> None:
    """An actor's event loop is uvloop's, and not in the main thread."""
    (tmp_path / "user.py").write_text(
        "import os\ndef grade(completion): return len(completion) if completion else os._exit(1)"
    )

    async def session() -> list[Outcome]:
        reward = FunctionReward(FunctionSpec(type="function", name="t", function=f"{tmp_path}/user.py:grade"))
        return await score_once(reward, samples("a", "", "bb"))

    seen: list[list[Outcome]] = []

    def body(coroutine: Coroutine[Any, Any, list[Outcome]]) -> None:
        seen.append(run(coroutine))

    thread = threading.Thread(target=body, args=(session(),))
    thread.start()
    thread.join(timeout=60)
    assert [kinds(outcomes) for outcomes in seen] == [[1.0, "crashed", 2.0]]
