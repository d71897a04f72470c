"""What an engine started ends with the process that started it, also where that one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from headrace_lab.waiting import wait_until
from headrace_rollout.engines.vllm.orphan_guard import _WATCH_SECONDS, OrphanGuard, is_shared_segment

PARENT = """
import os, subprocess, sys, time
from headrace_rollout.engines.vllm.orphan_guard import OrphanGuard
guard = OrphanGuard()
child = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
marked = subprocess.Popen([sys.executable, "-c", child], env=os.environ | guard.environment, stdout=subprocess.PIPE)
other = subprocess.Popen(["sleep", "600"])
print(marked.pid, int(marked.stdout.readline()), other.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_killed_parent_s_engine_is_ended_with_all_it_started_a_stopped_one_too() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        engine, below, other = map(int, parent.stdout.readline().split())
        os.kill(engine, signal.SIGSTOP)
        assert alive(engine)
        parent.kill()
        wait_until(lambda: not alive(engine) and not alive(below), "the engine and what it started are gone")
        assert alive(other)
        os.kill(other, signal.SIGKILL)


def test_a_released_guard_ends_what_is_left_and_itself() -> None:
    guard = OrphanGuard()
    with subprocess.Popen(["sleep", "600"], env=dict(os.environ) | guard.environment) as left:
        guard.release()
        assert left.wait(30) == -signal.SIGKILL
    guard.release()


SHARING = """
import sys, time
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(memory._name, "shared_memory")  # as where its tracker is killed, too
print(memory.name, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_memory_shared_by_one_that_was_killed_before_is_not_left() -> None:
    guard = OrphanGuard()
    command = [sys.executable, "-c", SHARING]
    environment = dict(os.environ) | guard.environment
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        segment = Path("/dev/shm") / engine.stdout.readline().strip()
        time.sleep(3 * _WATCH_SECONDS)
        engine.kill()
    assert segment.exists()
    guard.release()
    assert not segment.exists()


ACTOR = """
import os, subprocess, sys, time, ray
from headrace_controller.placement import environment
from headrace_rollout.engines.vllm.orphan_guard import OrphanGuard

@ray.remote(num_cpus=0, runtime_env={"env_vars": environment(threads=1, gpus=0.0)})
class Worker:
    def start(self, program, watch_seconds):
        self.guard = OrphanGuard()
        command, environment = [sys.executable, "-c", program], os.environ | self.guard.environment
        self.engine = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        segment = self.engine.stdout.readline().strip()
        time.sleep(3 * watch_seconds)
        return segment, self.guard._process.pid

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
worker = Worker.remote()
print(*ray.get(worker.start.remote(sys.argv[1], float(sys.argv[2]))), flush=True)
ray.kill(worker)
sys.stdin.read()
"""


@pytest.mark.slow
def test_an_actor_that_ray_kills_leaves_no_shared_memory() -> None:
    """Ray killed its children first: the guard among them could not remove what the engine had shared, 160 MB."""
    command = [sys.executable, "-c", ACTOR, SHARING, str(_WATCH_SECONDS)]
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short,
        subprocess.Popen(
            command,
            env=os.environ | {"RAY_TMPDIR": short, "RAY_AUTH_MODE": "disabled"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as cluster,
    ):
        assert cluster.stdout is not None
        name, guard = cluster.stdout.readline().split()
        segment = Path("/dev/shm") / name
        wait_until(lambda: not segment.exists() and not alive(int(guard)), "guard and shared memory are gone")


@pytest.mark.parametrize(
    ("name", "whether"),
    [
        ("/dev/shm/psm_0a1b2c3d", True),
        ("/dev/shm/45321-tp:0-[0-1]-cpushm_0", True),
        ("/dev/shm/headrace-weights/v000003/model.safetensors", False),
        ("/srv/psm_models/-cpushm", False),
        ("(deleted)", False),
    ],
)
def test_shared_memory_of_vllm_is_known_by_its_name(name: str, whether: bool) -> None:
    assert is_shared_segment(name) is whether
