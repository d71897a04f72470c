"""The corpus of hostile graders: each act is contained, named by its kind, and leaves nothing behind.

    hostile reward    ─► [the act, a good sample]  ─► what the table says, and 1
    neighbour's reward ─► [a good sample]          ─► 1, at the same time
    after all of them: no process, no file changed outside, no connection received

The acts lie in `hostile/`; they are bounded by themselves. A reward goes on to the next act, unless the table says that
the act spoiled it for good: then that must be all that it spoiled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace_core.config.reward_permissions import RewardPermissions, SandboxLevel
from headrace_core.protocols.grader_check import Failure, Outcome, Score
from headrace_rewards.graders.function import FunctionReward, FunctionSpec
from headrace_rewards.protocol import Sample
from headrace_rewards.sandbox.kernel.resource_limits import ResourceLimits
from headrace_rewards.sandbox.level_probe import probe_level

CORPUS = Path(__file__).parent / "hostile"
SECRET = "hunter2-of-the-service"
LEFT_BEHIND = "599.25"
TIMEOUT = 2.0
LANES = 3
"""Acts at a time: most of them wait for a limit."""
LIMITS = ResourceLimits(
    memory_bytes=256 << 20,
    processes=32,
    file_bytes=16 << 20,
    scratch_bytes=32 << 20,
    output_bytes=256 << 10,
)


@dataclass(frozen=True)
class Act:
    """What becomes of it: a score, or a kind of failure whose message or last lines say `words`."""

    name: str
    expected: float | str
    words: str = ""
    spoils: bool = False
    """Its reward is not used any more: processes, threads or patches of it stay."""
    levels: tuple[SandboxLevel, ...] = ("isolated",)
    """`filtered` too where that level has to hold it in another way."""


BOTH: tuple[SandboxLevel, ...] = ("isolated", "filtered")
ACTS = [
    Act("exhaust.fork_bomb", "exception", "BlockingIOError", spoils=True, levels=BOTH),
    Act("exhaust.fork_tree", "timeout", levels=BOTH),
    Act("exhaust.zombies", "exception", "BlockingIOError", spoils=True),
    Act("exhaust.orphaned_zombies", 0.0, levels=BOTH),
    Act("exhaust.threads", "exception", "can't start new thread", spoils=True),
    Act("exhaust.memory", "exception", "MemoryError"),
    Act("exhaust.memory_in_children", "crashed", "bytes of memory together", levels=BOTH),
    Act("exhaust.memory_behind_an_ended_thread", "crashed", "bytes of memory together", levels=BOTH),
    Act("exhaust.memory_in_sockets", "crashed", "bytes of memory together", levels=BOTH),
    Act("exhaust.memory_in_unlinked_files", "crashed", "bytes of memory together"),
    Act("exhaust.waiting_connections", "timeout", levels=BOTH),
    Act("exhaust.shared_memory", "exception", "Cannot allocate memory"),
    Act("exhaust.memory_file", 0.0),
    Act("exhaust.loop", "timeout"),
    Act("exhaust.loop_in_c", "timeout"),
    Act("exhaust.backtracking", "timeout"),
    Act("exhaust.sleep", "timeout"),
    Act("exhaust.output", "bad_output", "printed more than"),
    Act("exhaust.output_of_a_child", "bad_output", "printed more than"),
    Act("exhaust.disk", "exception", "No space left", spoils=True),
    Act("exhaust.many_names", "exception", "No space left", spoils=True),
    Act("exhaust.large_file", "exception", "File too large", spoils=True, levels=BOTH),
    Act("exhaust.open_files", "exception", "Too many open files", spoils=True),
    Act("exhaust.recursion", "exception", "RecursionError"),
    Act("exhaust.stack_of_c", "crashed", "SIGSEGV"),
    Act("hoards.pipes", "crashed", "bytes of memory together", levels=BOTH),
    Act("hoards.named_pipes", "crashed", "bytes of memory together", levels=BOTH),
    Act("hoards.larger_pipes", 0.0, levels=BOTH),
    Act("hoards.pages_in_pipes", 0.0, levels=BOTH),
    Act("hoards.shared_memory_that_nobody_maps", "crashed", "bytes of memory together", levels=BOTH),
    Act("hoards.large_shared_memory", 0.0, levels=BOTH),
    Act("hoards.connections_that_nobody_accepted", "crashed", "bytes of memory together", levels=BOTH),
    Act("hoards.connections_with_an_address_of_two_lines", 0.0, levels=BOTH),
    Act("hoards.notices_of_files", 0.0, levels=BOTH),
    Act("hoards.requests_of_the_kernel", 0.0, levels=BOTH),
    Act("endings.exit_now", "crashed", "exited with status 7"),
    Act("endings.exit_zero", "crashed", "exited with status 0"),
    Act("endings.system_exit", "exception", "SystemExit: 3"),
    Act("endings.interrupt", "exception", "KeyboardInterrupt"),
    Act("endings.kill_itself", "crashed", "SIGKILL"),
    Act("endings.stop_itself", "timeout", levels=BOTH),
    Act("endings.abort", "crashed", "SIGABRT"),
    Act("endings.segmentation_fault", "crashed", "SIGSEGV"),
    Act("endings.another_program", "crashed", "somebody else", levels=BOTH),
    Act("endings.ignore_signals", "timeout"),
    Act("endings.hang_at_exit", 0.0, spoils=True),
    Act("endings.base_exception", "exception", "Odd: neither an Exception"),
    Act("endings.exception_without_text", "exception", "NoText"),
    Act("endings.exception_that_exits", "crashed", "exited with status 9"),
    Act("endings.exception_that_hangs", "timeout"),
    Act("endings.exception_with_a_novel", "exception", "RuntimeError"),
    Act("endings.exception_not_to_be_pickled", "exception", "Unpicklable"),
    Act("answers.nan", "invalid_value", "nan"),
    Act("answers.infinity", "invalid_value", "-inf"),
    Act("answers.text", "invalid_value", "'1.0' (str)"),
    Act("answers.long_text", "invalid_value", "(str)"),
    Act("answers.large_integer", "invalid_value", "too large"),
    Act("answers.generator", "invalid_value", "generator"),
    Act("answers.a_class", "invalid_value"),
    Act("answers.empty", "invalid_value", "empty dict"),
    Act("answers.many_components", "bad_output", "at most"),
    Act("answers.raising_float", "exception", "no number for you"),
    Act("answers.hanging_float", "timeout"),
    Act("answers.float_of_another_type", "invalid_value", "no float"),
    Act("answers.raising_repr", "exception", "no text for you"),
    Act("answers.raising_equality", "invalid_value", "nan"),
    Act("answers.endless_mapping", "timeout"),
    Act("wires.close_everything", "crashed"),
    Act("wires.noise", "bad_output", "broke the protocol"),
    Act("wires.endless_frame", "bad_output", "bytes; at most"),
    Act("wires.forged_answers", 99.0, spoils=True),
    Act("wires.half_a_frame", "crashed"),
    Act("wires.shut_the_socket", "crashed"),
    Act("wires.rewrite_the_host", "bad_output", "broke the protocol"),
    Act("wires.break_the_host", "crashed", "exited with status 1"),
    Act("wires.close_the_socket_and_live", "crashed", "closed its socket", levels=BOTH),
    Act("wires.raise_limits", 0.0, levels=BOTH),
    Act("wires.leave_a_loop", 0.0, spoils=True),
    Act("wires.replace_modules", 0.0, spoils=True),
    Act("others.signal_the_service", 0.0, levels=BOTH),
    Act("others.signal_the_parent", 0.0, levels=BOTH),
    Act("others.signal_everyone_in_a_namespace", 0.0),
    Act("others.see_the_service", 0.0),
    Act("others.trace_the_service", 0.0, levels=BOTH),
    Act("others.trace_a_child", 0.0, levels=BOTH),
    Act("others.read_memory_of_the_service", 0.0, levels=BOTH),
    Act("others.limit_the_service", 0.0, levels=BOTH),
    Act("others.slow_the_service", 0.0, levels=BOTH),
    Act("others.become_root", 0.0, levels=BOTH),
    Act("others.new_namespaces", 0.0, levels=BOTH),
    Act("others.other_root", 0.0, levels=BOTH),
    Act("others.exec_a_setuid_program", 0.0, levels=BOTH),
    Act("others.leave_a_daemon", 0.0, levels=BOTH),
    Act("others.leave_a_program", 0.0, levels=BOTH),
    Act("others.leave_threads", 0.0),
    Act("others.leave_a_pool", 0.0),
    Act("others.die_before_the_children", "crashed", "exited with status 5", levels=BOTH),
    Act("reach.environment", 0.0, levels=BOTH),
    Act("reach.environment_of_the_service", 0.0, levels=BOTH),
    Act("reach.environment_of_everyone", 0.0, levels=BOTH),
    Act("reach.data_folder", 0.0, levels=BOTH),
    Act("reach.home", 0.0, levels=BOTH),
    Act("reach.passwords", 0.0, levels=BOTH),
    Act("reach.files_of_others", 0.0, levels=BOTH),
    Act("reach.around_by_links", 0.0, levels=BOTH),
    Act("reach.hard_link", 0.0, levels=BOTH),
    Act("reach.by_handle", 0.0, levels=BOTH),
    Act("reach.write_outside", 0.0, levels=BOTH),
    Act("reach.write_own_folder", 0.0, levels=BOTH),
    Act("reach.write_the_interpreter", 0.0, levels=BOTH),
    Act("reach.memory_of_the_kernel", 0.0, levels=BOTH),
    Act("reach.write_the_kernel", 0.0, levels=BOTH),
    Act("reach.devices", 0.0, levels=BOTH),
    Act("network.tcp", 0.0, levels=BOTH),
    Act("network.tcp_of_a_child", 0.0, levels=BOTH),
    Act("network.http", 0.0, levels=BOTH),
    Act("network.udp", 0.0, levels=BOTH),
    Act("network.names", 0.0, levels=BOTH),
    Act("network.unix_socket", 0.0, levels=BOTH),
    Act("network.unix_socket_by_a_link", 0.0, levels=BOTH),
    Act("network.unix_socket_in_a_race", 0.0, levels=BOTH),
    Act("network.datagrams_of_a_pair", 0.0, levels=BOTH),
    Act("network.raw", 0.0, levels=BOTH),
    Act("network.listen", 0.0, levels=BOTH),
]
TWELVE = {
    "exhaust.recursion", "exhaust.output", "endings.exit_now", "endings.system_exit", "answers.nan", "answers.empty",
    "wires.noise", "others.trace_the_service", "others.become_root", "reach.environment", "reach.data_folder",
    "network.tcp",
}  # fmt: skip
"""Of all kinds, none of which waits for a limit: the fast tier's."""


@dataclass
class Surroundings:
    """What the acts are after."""

    item: dict[str, Any]
    listeners: list[socket.socket]
    files: dict[Path, bytes]

    def changed(self) -> list[Path]:
        return [path for path, content in self.files.items() if path.read_bytes() != content]


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Surroundings]:
    """A service with a secret environment, a data folder, files that everyone may write to, and open sockets."""
    monkeypatch.setenv("HEADRACE_SECRET", SECRET)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    tmp_path.chmod(0o755)
    data, open_folder = tmp_path / "data", tmp_path / "open"
    data.mkdir()
    (data / "jobs.json").write_text(SECRET)
    open_folder.mkdir()
    open_folder.chmod(0o777)
    outside = open_folder / "outside.txt"
    outside.write_text(SECRET)
    outside.chmod(0o666)
    interpreter = {parent for prefix in (sys.prefix, sys.base_prefix) for parent in Path(prefix).resolve().parents}
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = tcp.getsockname()[1]
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", port))
        plain, abstract = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        plain.bind(str(open_folder / "socket"))
        (open_folder / "socket").chmod(0o777)
        abstract.bind(f"\0headrace-test-{os.getpid()}")
        for listener in (plain, abstract):
            listener.listen()
        item = {
            "secret": SECRET,
            "service": os.getpid(),
            "pid_namespace": os.readlink("/proc/self/ns/pid"),
            "data_folder": str(data),
            "open_folder": str(open_folder),
            "own_folder": str(CORPUS),
            "outside": str(outside),
            "home": str(Path.home()),
            "home_names": [path.name for path in Path.home().iterdir() if path not in interpreter],
            "port": port,
            "unix_socket": str(open_folder / "socket"),
            "abstract_socket": f"headrace-test-{os.getpid()}",
        }
        another = subprocess.Popen(["sleep", "500"])  # has the secret in the environment that `/proc` shows
        stack.callback(another.wait)
        stack.callback(another.kill)
        watched = [*CORPUS.glob("*.py"), outside, data / "jobs.json"]
        yield Surroundings(item, [tcp, udp, plain, abstract], {path: path.read_bytes() for path in watched})


def reward(level: SandboxLevel, surroundings: Surroundings) -> FunctionReward:
    spec = FunctionSpec(type="function", name="hostile", function=f"{CORPUS}/grader.py:grade", timeout=TIMEOUT)
    return FunctionReward(spec, RewardPermissions(hidden=(surroundings.item["data_folder"],)), LIMITS, level)


class Pair:
    """A hostile reward, renewed where it was spoiled, and its neighbour."""

    def __init__(self, level: SandboxLevel, surroundings: Surroundings) -> None:
        self._level, self._surroundings = level, surroundings
        self._hostile = reward(level, surroundings)
        self._neighbour = reward(level, surroundings)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Pair]:
        await asyncio.gather(self._hostile.start(), self._neighbour.start())
        try:
            yield self
        finally:
            await asyncio.gather(self._hostile.close(), self._neighbour.close())

    async def run(self, act: Act) -> str | None:
        """What is wrong with how `act` ended, or `None`."""
        good = Sample("", {"act": "exhaust.behave"})
        sample = Sample("", {**self._surroundings.item, "act": act.name})
        hostile = self._hostile.score([sample] if act.spoils else [sample, good])
        outcomes, neighbours = await asyncio.gather(hostile, self._neighbour.score([good]))
        if act.spoils:
            await self._hostile.close()
            self._hostile = reward(self._level, self._surroundings)
            await self._hostile.start()
        if [*outcomes[1:], *neighbours] != [Score(1.0)] * (1 if act.spoils else 2):
            return f"{act.name}: others were hit: {[*outcomes[1:], *neighbours]}"
        return None if as_expected(act, outcomes[0]) else f"{act.name}: {outcomes[0]}"


async def run_all(acts: Sequence[Act], level: SandboxLevel, surroundings: Surroundings) -> list[str]:
    async with Pair(level, surroundings).running() as pair:
        return [fault for act in acts if (fault := await pair.run(act)) is not None]


def as_expected(act: Act, outcome: Outcome) -> bool:
    if isinstance(outcome, Failure):
        return outcome.kind == act.expected and act.words in f"{outcome.message}\n{outcome.traceback}"
    return isinstance(outcome, Score) and outcome.value == act.expected


def left_behind() -> list[str]:
    """Processes that a host of this test started, by the command line that a fork keeps, or by how long they sleep."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            line = process.cmdline()
            if LEFT_BEHIND in line or ("headrace_rewards.sandbox.guard" in line and str(os.getpid()) in line):
                found.append(f"{process.pid} {line}")
    return found


@pytest.mark.parametrize(
    ("level", "names"),
    [
        pytest.param("isolated", None, marks=pytest.mark.slow, id="isolated"),
        pytest.param("filtered", None, marks=pytest.mark.slow, id="filtered"),
        pytest.param("isolated", TWELVE, id="twelve"),
    ],
)
@pytest.mark.timeout(200)
async def test_every_hostile_grader_is_contained(
    level: SandboxLevel, names: Collection[str] | None, surroundings: Surroundings
) -> None:
    acts = [act for act in ACTS if level in act.levels and (names is None or act.name in names)]
    assert len(acts) == len(names or acts)
    # without a user of its own, one host's processes count against another's share
    count = LANES if level == "isolated" or os.getuid() == 0 else 1
    lanes = await asyncio.gather(*(run_all(acts[lane::count], level, surroundings) for lane in range(count)))
    faults = [fault for lane in lanes for fault in lane]
    assert not faults, "\n".join(faults)
    assert left_behind() == []
    assert os.listdir(tempfile.gettempdir()) == []
    assert surroundings.changed() == []
    for listener in surroundings.listeners:
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()


def test_the_corpus_is_large_and_wholly_used() -> None:
    names = {act.name for act in ACTS}
    assert len(names) == len(ACTS) >= 40
    written = set()
    for path in CORPUS.glob("*.py"):
        lines = path.read_text().splitlines()
        defined = [line[4 : line.index("(")] for line in lines if line.startswith("def ") and "(item" in line]
        written |= {f"{path.stem}.{name}" for name in defined}
    assert written - names == {"grader.grade", "exhaust.behave"}


async def test_this_machine_holds_the_strongest_level() -> None:
    """Where this fails, so do the tests of that level; the text says what is missing."""
    machine = await probe_level()
    assert str(machine) == "isolated"
    assert sys.platform == "linux"
