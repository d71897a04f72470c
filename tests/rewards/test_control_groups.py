"""What the kernel holds where the service has control groups of its own; few machines have some to give to a test.

So a small Linux is started as a process (`linux.uml`), and `user_mode_linux.py` is the first process in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace_rewards.sandbox.kernel import control_groups

pytestmark = pytest.mark.slow

INSIDE = Path(__file__).parent / "user_mode_linux.py"
TOO_MUCH = "its processes used more than 67108864 bytes of memory together"
BY_KERNEL = "memory held by the kernel (control groups in {})"


@pytest.fixture(scope="module")
def found() -> Any:
    program = shutil.which("linux.uml", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("`make setup-dev` brings linux.uml where it runs as root on x86_64; else: user-mode-linux")
    argv = [program, "mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "con=null"]
    argv += ["con0=null,fd:1", f"init={sys.executable}", "--", "-B", str(INSIDE)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=170, check=False)
    said = done.stdout.decode(errors="replace")
    lines = [line for line in said.splitlines() if line.startswith('{"seconds"')]
    assert lines, f"{said}\n{done.stderr.decode(errors='replace')}"
    print(said)  # shown where a test fails
    return json.loads(lines[-1])


@pytest.mark.timeout(180)
def test_the_kernel_ends_a_host_whose_processes_hold_too_much_together(found: Any) -> None:
    held = found["isolated"]
    assert held["behave"].startswith("Score(value=1.0")
    for act in ("children", "unmapped"):
        assert "kind='crashed'" in held[act], held
        assert TOO_MUCH in held[act], held
    assert held["pipes"].startswith("Score(value=3.0"), "a hundred are within the limit"
    assert (held["groups"], held["groups after"]) == ("1", "0")


@pytest.mark.timeout(180)
def test_the_kernel_counts_processes_where_it_counts_none_of_roots(found: Any) -> None:
    assert "BlockingIOError" in found["limits"]["forks"]


@pytest.mark.timeout(180)
def test_what_a_killed_guard_left_is_ended_by_the_service(found: Any) -> None:
    held = found["killed"]
    assert held["daemon"].startswith("Score(value=4.0")
    assert (held["groups after"], held["guards after"]) == ("0", "0")


@pytest.mark.timeout(180)
def test_groups_are_taken_where_they_are_the_services_own(found: Any) -> None:
    assert found["root"] == [
        "memory counted by the guard (the control group /sys/fs/cgroup is not divided yet: `headrace serve` does that)",
        BY_KERNEL.format("/sys/fs/cgroup"),
        "0::/",
    ]
    before, after, group = found["in_a_container"]
    assert "is not divided yet" in before
    assert (after, group) == (BY_KERNEL.format("/sys/fs/cgroup"), "0::/headrace-service")
    _, after, group = found["in_a_delegated_group"]
    assert (after, group) == (BY_KERNEL.format("/sys/fs/cgroup/delegated"), "0::/delegated/headrace-service")


@pytest.mark.timeout(180)
def test_the_group_of_somebody_else_is_left_as_it_is(found: Any) -> None:
    before, after, group = found["in_a_group_of_somebody"]
    assert before == after
    assert before.endswith("(the control group /sys/fs/cgroup/somebody is not the service's to divide)")
    assert group == "0::/somebody"


def test_a_machine_without_them_says_why() -> None:
    assert control_groups.held().startswith(("memory counted by the guard (", "memory held by the kernel ("))
