"""What holds a host process: its environment, its limits, and its death with its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace_rewards.functions import FunctionReward, FunctionSpec
from headrace_rewards.isolation import Limits
from headrace_rewards.protocol import Sample, Score


def write(tmp_path: Path, source: str) -> FunctionSpec:
    (tmp_path / "user.py").write_text(textwrap.dedent(source))
    return FunctionSpec(type="function", name="t", function=f"{tmp_path}/user.py:grade", timeout=60)


async def report(tmp_path: Path, source: str, limits: Limits | None = None, calls: int = 1) -> Any:
    """What the user's function wrote about itself, as JSON, to the file its row names."""
    reward = FunctionReward(write(tmp_path, source), limits)
    await reward.start()
    try:
        for _ in range(calls):
            assert await reward.score([Sample("", {"out": str(tmp_path / "out")})]) == [Score(1.0)]
    finally:
        await reward.close()
    return json.loads((tmp_path / "out").read_text())


async def test_the_environment_is_scrubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRET", "hunter2")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    seen = await report(
        tmp_path,
        """
        import json, os, pathlib, sys
        def grade(item):
            found = {"env": dict(os.environ), "cwd": os.getcwd(), "path": sys.path, "files": os.listdir(".")}
            pathlib.Path(item["out"]).write_text(json.dumps(found))
            return 1
        """,
    )
    assert "hunter2" not in json.dumps(seen)
    assert set(seen["env"]) <= {
        *("PATH", "LD_LIBRARY_PATH", "TZ", "HOME", "TMPDIR", "LC_ALL"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    }
    assert seen["env"]["OMP_NUM_THREADS"] == "1"
    assert seen["cwd"] == seen["env"]["HOME"] == seen["env"]["TMPDIR"] != os.getcwd()
    assert seen["files"] == []
    assert seen["path"][0] == str(tmp_path)
    assert str(tmp_path / "elsewhere") not in seen["path"]


async def test_limits_hold_and_processor_time_is_granted_anew(tmp_path: Path) -> None:
    limits = Limits(memory_bytes=1 << 30, open_files=64, file_bytes=1 << 20)
    seen = await report(
        tmp_path,
        """
        import json, os, pathlib, resource, time
        granted = []
        def grade(item):
            granted.append(resource.getrlimit(resource.RLIMIT_CPU)[0])
            while time.process_time() < 1.5: pass
            names = ("RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_CORE")
            found = {name: resource.getrlimit(getattr(resource, name)) for name in names}
            found |= {"granted": granted, "session": os.getsid(0) == os.getpgrp() == os.getpid()}
            try:
                with open("big", "wb") as file: file.write(bytes(2 << 20))
            except OSError as error: found["file"] = error.strerror
            pathlib.Path(item["out"]).write_text(json.dumps(found))
            return 1
        """,
        limits,
        calls=2,
    )
    assert seen["RLIMIT_AS"] == [1 << 30] * 2
    assert seen["RLIMIT_NOFILE"] == [64] * 2
    assert seen["RLIMIT_FSIZE"] == [1 << 20] * 2
    assert seen["RLIMIT_CORE"] == [0, 0]
    assert seen["file"] == "File too large"
    assert seen["session"]
    first, second = seen["granted"]
    assert 60 * 4 <= first < second < 60 * 4 + 30


_PARENT = """
import asyncio, sys
from headrace_rewards.functions import FunctionReward, FunctionSpec
from headrace_rewards.protocol import Sample

async def main():
    reward = FunctionReward(FunctionSpec(type="function", name="t", function=sys.argv[1], timeout=600))
    await reward.start()
    [pid] = await reward.score([Sample("pid")])
    print(int(pid.value), flush=True)
    await reward.score([Sample("loop", {"fifo": sys.argv[2]})])

asyncio.run(main())
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process whose reward never ends its work."""
    spec = write(
        tmp_path,
        """
        import os
        def grade(completion, item):
            if completion == "pid": return os.getpid()
            with open(item["fifo"], "w") as fifo: fifo.write("looping")
            while True: pass
        """,
    )
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    argv = [sys.executable, "-c", _PARENT, spec.function, str(fifo)]
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # a killed service leaves its scratch folder
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield process
        process.kill()


@pytest.mark.timeout(60)
def test_it_dies_with_its_parent_in_an_endless_loop(parent: subprocess.Popen[str], tmp_path: Path) -> None:
    assert parent.stdout is not None
    host = psutil.Process(int(parent.stdout.readline()))
    assert host.ppid() == parent.pid
    assert (tmp_path / "fifo").read_text() == "looping"  # blocks until the loop begins
    parent.kill()
    parent.wait(timeout=10)
    _, alive = psutil.wait_procs([host], timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_host_loads_none_of_the_service() -> None:
    """It starts again after every crash, so it must start fast; and a user's code finds nothing of ours to lean on."""
    code = "import sys, headrace_rewards.host; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "headrace_rewards" in loaded
    assert not loaded & {"pydantic", "numpy", "torch", "redis", "ray", "vllm", "headrace_core", "headrace_gateway"}
