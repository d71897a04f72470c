"""What holds a host process: its environment, its limits, what it may read, and its death with the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace_core.config.reward_permissions import SANDBOX_LEVELS, RewardPermissions, SandboxLevel
from headrace_core.errors import Unavailable
from headrace_core.protocols.grader_check import Failure, Score
from headrace_lab.rewards import score_once
from headrace_lab.waiting import wait_until
from headrace_rewards.graders.function import FunctionReward, FunctionSpec
from headrace_rewards.protocol import Sample
from headrace_rewards.sandbox.kernel import control_groups, readable_paths
from headrace_rewards.sandbox.kernel.resource_limits import ResourceLimits
from headrace_rewards.sandbox.level_probe import MachineReport

LEVELS = pytest.mark.parametrize("level", SANDBOX_LEVELS)
CONTAINED = pytest.mark.parametrize("level", SANDBOX_LEVELS[1:])


def write(tmp_path: Path, source: str) -> FunctionSpec:
    (tmp_path / "user.py").write_text(textwrap.dedent(source))
    return FunctionSpec(type="function", name="t", function=f"{tmp_path}/user.py:grade", timeout=60)


async def report(reward: FunctionReward, item: dict[str, Any] | None = None, calls: int = 1) -> Any:
    """What the user's function found out, which it raises as `Exception(json)`: at most 1,000 characters."""
    await reward.start()
    try:
        for _ in range(calls):
            [outcome] = await reward.score([Sample("", item or {})])
    finally:
        await reward.close()
    assert isinstance(outcome, Failure)
    assert outcome.message.startswith("Exception: {"), outcome
    return json.loads(outcome.message.removeprefix("Exception: "))


@LEVELS
async def test_the_environment_is_scrubbed(
    level: SandboxLevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_SECRET", "hunter2")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    spec = write(
        tmp_path,
        """
        import json, os, sys
        def grade(item):
            found = {"env": dict(os.environ, PATH=""), "cwd": os.getcwd(), "files": os.listdir(".")}
            found |= {"first": sys.path[0], "elsewhere": item["elsewhere"] in sys.path}
            raise Exception(json.dumps(found))
        """,
    )
    seen = await report(FunctionReward(spec, level=level), {"elsewhere": str(tmp_path / "elsewhere")})
    assert "hunter2" not in json.dumps(seen)
    assert set(seen["env"]) <= {
        *("PATH", "LD_LIBRARY_PATH", "TZ", "HOME", "TMPDIR", "LC_ALL"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "HEADRACE_USER_MODULE"),
    }
    assert seen["env"]["OMP_NUM_THREADS"] == "1"
    assert seen["cwd"] == seen["env"]["HOME"] == seen["env"]["TMPDIR"] != os.getcwd()
    assert seen["files"] == []
    assert seen["first"] == str(tmp_path)
    assert not seen["elsewhere"]


@LEVELS
@pytest.mark.slow
async def test_limits_hold(level: SandboxLevel, tmp_path: Path) -> None:
    limits = ResourceLimits(memory_bytes=1 << 30, open_files=64, file_bytes=1 << 20, processes=40)
    spec = write(
        tmp_path,
        """
        import json, os, resource
        def grade(item):
            names = ("RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NPROC")
            found = {name: resource.getrlimit(getattr(resource, name)) for name in names}
            with open("/proc/self/oom_score_adj") as file: found |= {"goes first": file.read()}
            found |= {"session": os.getsid(0) == os.getpgrp() == os.getpid()}
            try:
                with open("big", "wb") as file: file.write(bytes(2 << 20))
            except OSError as error: found["file"] = error.strerror
            raise Exception(json.dumps(found))
        """,
    )
    seen = await report(FunctionReward(spec, limits=limits, level=level))
    assert seen["RLIMIT_AS"] == [1 << 30] * 2
    assert seen["RLIMIT_NOFILE"] == [64] * 2
    assert seen["RLIMIT_FSIZE"] == [1 << 20] * 2
    assert seen["RLIMIT_CORE"] == [0, 0]
    assert seen["RLIMIT_NPROC"][1] >= 40
    assert seen["file"] == "File too large"
    assert seen["session"]
    assert seen["goes first"] == "1000\n"


async def test_processor_time_is_counted_from_unit_to_unit_whatever_limits_the_code_lifts(tmp_path: Path) -> None:
    limits = ResourceLimits(cpu_per_second=0.0, cpu_seconds=0.8)
    source = """
        import resource, time
        def grade(completion):
            resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            until = time.process_time() + float(completion)
            while time.process_time() < until: pass
            return 1
        """
    reward = FunctionReward(write(tmp_path, source), limits=limits, level="isolated")
    outcomes = await score_once(reward, [Sample("0.5"), Sample("0.5"), Sample("20")])
    assert outcomes[:2] == [Score(1.0), Score(1.0)]
    assert isinstance(outcomes[2], Failure)
    assert "used more than 0.8 s of processor time" in outcomes[2].traceback


async def test_the_guard_counts_where_the_kernel_does_not(tmp_path: Path) -> None:
    """Of root's processes the kernel counts none; below `filtered` the host is still root where the service is."""
    source = """
        import os, time
        def grade(completion):
            for _ in range(60):
                if os.fork() == 0: time.sleep(60)
            time.sleep(60)
        """
    reward = FunctionReward(write(tmp_path, source), limits=ResourceLimits(processes=16), level="limits")
    [outcome] = await score_once(reward, [Sample("")])
    assert isinstance(outcome, Failure)
    told = "processes and threads ran at once; 16 are allowed" in outcome.traceback
    assert told if os.getuid() == 0 else outcome.kind in ("crashed", "exception")


@CONTAINED
async def test_it_has_no_rights_that_reading_does_not_take(level: SandboxLevel, tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        """
        import json, os
        def grade(item):
            with open("/proc/self/status") as file: status = dict(line.split(":", 1) for line in file)
            names = ("CapPrm", "CapEff", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")
            raise Exception(json.dumps({"uids": os.getresuid(), **{name: status[name].strip() for name in names}}))
        """,
    )
    first, second = [await report(FunctionReward(spec, level=level)) for _ in range(2)]
    reading = 1 << 2  # CAP_DAC_READ_SEARCH
    for seen in (first, second):
        assert int(seen["CapPrm"], 16) | int(seen["CapEff"], 16) | int(seen["CapAmb"], 16) in (0, reading)
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
    if os.getuid() == 0:
        assert 0 not in first["uids"] + second["uids"]
        assert first["uids"] != second["uids"]
        assert first["Groups"] == ""


@CONTAINED
async def test_its_own_folder_is_readable_but_for_what_is_hidden(level: SandboxLevel, tmp_path: Path) -> None:
    """The data folder lies beside the function, as `headrace-data` does where the service is started in a project."""
    (tmp_path / "headrace-data" / "files").mkdir(parents=True)
    (tmp_path / "headrace-data" / "files" / "secret").write_text("x")
    (tmp_path / "tables").mkdir(mode=0o700)
    (tmp_path / "tables" / "table.txt").write_text("7")
    (tmp_path / "neighbour.py").write_text("import pathlib; TABLES = pathlib.Path(__file__).parent / 'tables'")
    (tmp_path / "to-data").symlink_to(tmp_path / "headrace-data")
    spec = write(
        tmp_path,
        """
        import json, os, pathlib
        import msgspec, neighbour
        def grade(item):
            found = {"table": (neighbour.TABLES / "table.txt").read_text(), "reached": []}
            here = pathlib.Path(__file__).parent
            for name in ("headrace-data/files/secret", "to-data/files/secret"):
                try: found["reached"].append((here / name).read_text())
                except OSError: pass
            raise Exception(json.dumps(found))
        """,
    )
    (tmp_path / "user.py").chmod(0o600)
    rules = RewardPermissions(hidden=(str(tmp_path / "headrace-data"),))
    assert await report(FunctionReward(spec, rules, level=level)) == {"table": "7", "reached": []}


def test_a_view_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in (".ssh", ".cache", "project", "data", "deep/data/inner"):
        (home / name).mkdir(parents=True)
    (home / "reward.py").touch()
    hidden = [home / "data", home / "deep" / "data"]
    shown = [
        path for path in readable_paths.of(home / "reward.py", hidden, home).readable if path.is_relative_to(tmp_path)
    ]
    assert shown == [home / "project", home / "reward.py"]
    (home / "deep" / "table").touch()
    shown, listed = readable_paths.of(home / "reward.py", hidden, home)
    assert {home, home / "deep"} <= set(listed)
    assert home / "deep" / "table" in shown
    assert home / "deep" not in shown
    in_project = readable_paths.of(home / "project" / "reward.py", hidden, home).readable
    assert home / "project" in in_project
    assert home not in in_project
    inside = readable_paths.of(home / "data" / "reward.py", hidden, home).readable
    assert home / "data" not in inside
    assert Path(sys.prefix) in inside or any(parent in inside for parent in Path(sys.prefix).parents)


def test_a_view_of_the_import_path_leaves_out_what_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project that was installed where it is written, with the service's data in it."""
    for name in ("package", "headrace-data"):
        (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/:{tmp_path / 'package'}")
    shown, listed = readable_paths.of(None, [tmp_path / "headrace-data"])
    assert [path for path in shown if path.is_relative_to(tmp_path)] == [tmp_path / "package"]
    assert tmp_path in listed
    assert Path("/") not in shown


_SERVICE = """
import asyncio, sys
from headrace_rewards.graders.function import FunctionReward, FunctionSpec
from headrace_rewards.protocol import Sample

async def main():
    spec = FunctionSpec(type="function", name="t", function=sys.argv[1], timeout=600)
    reward = FunctionReward(spec, level=sys.argv[2])
    await reward.start()
    await reward.score([Sample("leave")])
    print("left", flush=True)
    await reward.score([Sample("loop")])

asyncio.run(main())
"""


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@LEVELS
@pytest.mark.timeout(100)
@pytest.mark.slow
def test_everything_dies_with_the_service(level: SandboxLevel, tmp_path: Path) -> None:
    """Killed in the midst of an endless loop, beside a daemon that left the host's session and lost its parent."""
    spec = write(
        tmp_path,
        """
        import os, time
        def grade(completion):
            while completion == "loop": pass
            child = os.fork()
            if child == 0:
                os.setsid()
                if os.fork() == 0: time.sleep(600)
                os._exit(0)
            os.waitpid(child, 0)
            return 1
        """,
    )
    argv = [sys.executable, "-c", _SERVICE, spec.function, level]
    (tmp_path / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == "left\n"
        below = psutil.Process(service.pid).children(recursive=True)
        assert len(below) >= 3  # guard, host, daemon, and process 1 of a namespace
        before = sum(process.cpu_times().user for process in below)
        wait_until(lambda: sum(p.cpu_times().user for p in below) > before + 0.1, "the loop is under way", pause=0.01)
        service.kill()
        service.wait(timeout=10)
        assert gone(below)
        assert list((tmp_path / "tmp").iterdir()) == []


async def test_a_guard_that_is_killed_takes_its_world_with_it(tmp_path: Path) -> None:
    """By the kernel's out-of-memory killer, say: no part of the guard's own runs then."""
    source = (
        "import os, time\ndef grade(completion):\n    if os.fork() == 0: os.setsid(); time.sleep(600)\n    return 1\n"
    )
    reward = FunctionReward(write(tmp_path, source), level="isolated")
    await reward.start()
    try:
        await reward.score([Sample("")])
        [guard] = [p for p in psutil.Process().children() if "headrace_rewards.sandbox.guard" in p.cmdline()]
        below = guard.children(recursive=True)
        assert len(below) == 3
        guard.kill()
        assert gone(below)
        assert (await reward.score([Sample("")]))[0].value == 1.0  # type: ignore[union-attr]
    finally:
        await reward.close()


# ── what a machine holds ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_falls_short_is_refused_with_its_reason() -> None:
    machine = MachineReport("filtered", {"isolated": "no namespaces: Operation not permitted"})
    for wanted in ("limits", "filtered"):
        machine.require(wanted)
    with pytest.raises(Unavailable, match=r"'isolated'.*holds 'filtered' \(no namespaces: Operation not permitted\)"):
        machine.require("isolated")
    assert str(machine) == "filtered (not isolated: no namespaces: Operation not permitted)"


_LESSER_MACHINE = """
import asyncio, sys
from pathlib import Path
from headrace_core.errors import Unavailable
from headrace_core.config.reward_permissions import RewardPermissions
from headrace_rewards.graders.function import FunctionReward, FunctionSpec
from headrace_rewards.protocol import Sample
from headrace_rewards.sandbox.kernel import landlock, seccomp, syscalls
from headrace_rewards.sandbox.level_probe import probe_level

syscalls.gain_nothing_by_exec()
seccomp.apply()
for _ in range(int(sys.argv[1])):
    landlock.apply([], [], [Path("/")])

async def main():
    spec = FunctionSpec(type="function", name="t", function=sys.argv[2])
    print(await probe_level())
    for level in ("isolated", "filtered", "limits"):
        reward = FunctionReward(spec, RewardPermissions(sandbox=level))
        try:
            await reward.start()
            print(level, *await reward.score([Sample("abc")]))
        except Unavailable as refused:
            print(level, refused.message)
        await reward.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(("layers", "held"), [(0, "filtered"), (16, "limits")])
def test_a_lesser_machine_says_so_and_refuses_what_it_cannot_hold(layers: int, held: str, tmp_path: Path) -> None:
    """Real ones: with the filter of system calls nobody makes namespaces, and Landlock takes sixteen layers."""
    spec = write(tmp_path, "def grade(completion): return len(completion)")
    argv = [sys.executable, "-c", _LESSER_MACHINE, str(layers), spec.function]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said, *tried = done.stdout.splitlines()
    assert said.startswith(f"{held} (not isolated: no namespaces: unshare: Operation not permitted")
    assert ("not filtered: landlock" in said) == (held == "limits")
    for line, level in zip(tried, reversed(SANDBOX_LEVELS), strict=True):
        if SANDBOX_LEVELS.index(level) <= SANDBOX_LEVELS.index(held):
            assert line.startswith(f"{level} Score(value=3.0, ")
        else:
            assert f"asks for sandbox level '{level}', and this machine holds '{held}'" in line


def test_the_level_is_said_to_whoever_asks() -> None:
    for wanted in SANDBOX_LEVELS:
        argv = [sys.executable, "-m", "headrace_rewards", "sandbox"]
        done = subprocess.run(argv, input=json.dumps(wanted), capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout) == f"isolated; {control_groups.held()}"


def test_it_is_found_out_once_for_all_processes_that_are_forked() -> None:
    """And what finds it out leaves no thread and no child in the one that they are forked from."""
    program = (
        "import asyncio, os, psutil\nfrom headrace_rewards.sandbox import level_probe\n"
        "level_probe.probe_in_child()\n"
        "print(len(os.listdir('/proc/self/task')), psutil.Process().children())\n"
        "level_probe._probe_levels = None  # would raise\n"
        "print(asyncio.run(level_probe.probe_level()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["1 []", "isolated"], done.stderr


def test_a_host_loads_none_of_the_service() -> None:
    """It starts again after every crash, so it must start fast; and a user's code finds little of ours to lean on."""
    code = "import sys, headrace_rewards.sandbox.guard; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "headrace_rewards.sandbox.host" in loaded
    assert {name for name in loaded if name.startswith("headrace_core")} <= {
        "headrace_core",
        "headrace_core.config",
        "headrace_core.config.reward_permissions",
        "headrace_core.errors",
        "headrace_core.protocols",
        "headrace_core.protocols.grader_check",
        "headrace_core.types",
        "headrace_core.types.likelihood",
    }
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & {"pydantic", "numpy", "torch", "redis", "ray", "vllm", "headrace_gateway"}
