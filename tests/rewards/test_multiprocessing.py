"""Code rewards run programs in processes of their own: what `multiprocessing` and `subprocess` need works when held."""

from __future__ import annotations

import json
import socket
import textwrap
from pathlib import Path
from typing import Any

import pytest

from headrace_core.config.reward_permissions import SANDBOX_LEVELS, SandboxLevel
from headrace_core.protocols.grader_check import Failure, Score
from headrace_lab.rewards import score_once
from headrace_rewards.graders.function import FunctionReward, FunctionSpec
from headrace_rewards.graders.python_source import PythonReward, PythonSpec
from headrace_rewards.protocol import Sample

CHECKER = Path(__file__).parent / "code_checker.py"
RIGHT = "a, b = map(int, input().split())\nprint(a + b)"
WRONG = "a, b = map(int, input().split())\nprint(a - b)"
ENDLESS = "while True: pass"
TESTS = [["1 2\n", "3"], ["40 2\n", "42"]]
CONTAINED = pytest.mark.parametrize("level", SANDBOX_LEVELS[1:])


@pytest.mark.parametrize("level", SANDBOX_LEVELS)
async def test_a_checker_of_programs_tells_right_from_wrong(level: SandboxLevel) -> None:
    spec = FunctionSpec(type="function", name="t", function=f"{CHECKER}:grade", timeout=20)
    samples = [Sample(program, {"tests": TESTS}) for program in (RIGHT, WRONG, ENDLESS)]
    outcomes = await score_once(FunctionReward(spec, level=level), samples)
    assert outcomes == [Score(1.0), Score(0.0), Score(0.0)]


@CONTAINED
@pytest.mark.parametrize("start", ["spawn", "forkserver"])
async def test_a_checker_that_starts_its_processes_anew(level: SandboxLevel, start: str) -> None:
    """The function that they run is one of the user's file, which they find by its name."""
    spec = FunctionSpec(type="function", name="t", function=f"{CHECKER}:grade", timeout=30)
    samples = [Sample(program, {"tests": TESTS, "start": start}) for program in (RIGHT, WRONG)]
    assert await score_once(FunctionReward(spec, level=level), samples) == [Score(1.0), Score(0.0)]


@CONTAINED
async def test_a_checker_that_comes_as_text_starts_its_processes_anew(level: SandboxLevel) -> None:
    taken = "def grade(sample: dict, tests: list, start: str) -> float:\n    completion = sample['output_text']"
    head = 'def grade(completion: str, tests: list[list[str]], start: str = "fork") -> float:'
    source = CHECKER.read_text().replace(head, taken)
    spec = PythonSpec(type="python", name="t", source=source, timeout=30)
    samples = [Sample(program, {"tests": TESTS, "start": "spawn"}) for program in (RIGHT, WRONG)]
    assert await score_once(PythonReward(spec, level=level), samples) == [Score(1.0), Score(0.0)]


_USES = """
import asyncio, concurrent.futures, json, multiprocessing, socket, subprocess, sys, threading

def double(x): return 2 * x
def put(queue): queue.put(7)
def say(end): end.send("hi")

def pool(context):
    with context.Pool(2) as pool: return pool.map(double, [1, 2]) == [2, 4]

def queue(context):
    queue = context.Queue()
    process = context.Process(target=put, args=(queue,))
    process.start()
    got = queue.get(timeout=20)
    process.join()
    return got == 7

def add(lock, total, event):
    for _ in range(500):
        with lock: total.value += 1
    event.wait(20)

def locks(context):
    '''Two processes that count together lose nothing; what is held is not given twice, and not given back twice.'''
    lock, event, total = context.RLock(), context.Event(), context.Value("i", 0, lock=False)
    processes = [context.Process(target=add, args=(lock, total, event)) for _ in range(2)]
    for process in processes: process.start()
    event.set()
    for process in processes: process.join()
    simple, few = context.Lock(), context.BoundedSemaphore(1)
    with lock, lock, simple:
        busy = [simple.acquire(timeout=0.05), simple.acquire(block=False)]
    try: few.release()
    except ValueError: return (total.value, busy) == (1000, [False, False])

def executor(context):
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        return list(pool.map(double, [1, 2, 3])) == [2, 4, 6]

def anew(context):
    '''Of processes that share no memory with this one.'''
    return executor(multiprocessing.get_context("spawn"))

def pipe(context):
    ours, theirs = context.Pipe()
    process = context.Process(target=say, args=(theirs,))
    process.start()
    got = ours.recv()
    process.join()
    return got == "hi"

def program(context):
    return subprocess.run(["cat"], input=b"x", capture_output=True, check=True).stdout == b"x"

def server(context):
    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()
    async def run():
        async with await asyncio.start_unix_server(echo, "echo.sock"):
            reader, writer = await asyncio.open_unix_connection("echo.sock")
            writer.write(b"x\\n")
            return await reader.readline()
    return asyncio.run_coroutine_threadsafe(run(), loop).result(20) == b"x\\n"

loop = asyncio.new_event_loop()

def full_queue(context):
    '''More wait for a listener than it lets wait; all come in, in the end.'''
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("full.sock")
    listener.listen(1)
    def connect():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("full.sock")
            client.sendall(b"x")
    threads = [threading.Thread(target=connect) for _ in range(12)]
    for thread in threads: thread.start()
    threading.Event().wait(0.3)
    came = sum(listener.accept()[0].recv(1) == b"x" for _ in threads)
    for thread in threads: thread.join()
    return came == 12

def grade(item):
    if not loop.is_running(): threading.Thread(target=loop.run_forever, daemon=True).start()
    found = {}
    for use in item["uses"]:
        try: found[use] = globals()[use](multiprocessing.get_context("fork"))
        except Exception as fault: found[use] = repr(fault)
    raise Exception(json.dumps(found))
"""


async def used(level: SandboxLevel, tmp_path: Path, *uses: str) -> Any:
    (tmp_path / "user.py").write_text(_USES)
    spec = FunctionSpec(type="function", name="t", function=f"{tmp_path}/user.py:grade", timeout=30)
    [outcome] = await score_once(FunctionReward(spec, level=level), [Sample("", {"uses": uses})])
    assert isinstance(outcome, Failure), outcome
    assert outcome.message.startswith("Exception: {"), outcome
    return json.loads(outcome.message.removeprefix("Exception: "))


@CONTAINED
async def test_processes_of_its_own_can_be_spoken_to(level: SandboxLevel, tmp_path: Path) -> None:
    uses = ("pipe", "program", "server", "full_queue")
    assert await used(level, tmp_path, *uses) == dict.fromkeys(uses, True)


@CONTAINED
async def test_pools_queues_and_locks_have_their_semaphores(level: SandboxLevel, tmp_path: Path) -> None:
    """At `filtered` they cannot lie in /dev/shm, where everyone's are."""
    uses = ("pool", "queue", "locks", "executor", "anew")
    assert await used(level, tmp_path, *uses) == dict.fromkeys(uses, True)


@CONTAINED
async def test_a_socket_in_the_functions_own_folder_is_not_its_own(level: SandboxLevel, tmp_path: Path) -> None:
    """It may read that folder, and a project may have a server's socket in it, open to everyone."""
    source = """
        import errno, os, socket
        from pathlib import Path
        def grade(completion):
            os.chdir(Path(__file__).parent)
            for address in ("s", str(Path("s").absolute()), "./../" + Path.cwd().name + "/s"):
                with socket.socket(socket.AF_UNIX) as client:
                    try: client.connect(address)
                    except OSError as fault: assert fault.errno in (errno.EPERM, errno.EACCES), fault
                    else: return 1
            return 0
        """
    (tmp_path / "user.py").write_text(textwrap.dedent(source))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        (tmp_path / "s").chmod(0o777)
        listener.listen()
        spec = FunctionSpec(type="function", name="t", function=f"{tmp_path}/user.py:grade", timeout=30)
        assert await score_once(FunctionReward(spec, level=level), [Sample("")]) == [Score(0.0)]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
