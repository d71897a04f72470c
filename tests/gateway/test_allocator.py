"""glibc's allocator gives back what was freed: measured on a process of its own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, threading, sys
from pathlib import Path
from headrace_gateway import allocator
if sys.argv[1] == "bound":
    assert allocator.configure()
def resident():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0])
def work():
    kept = [[bytes(1000 + n % 5000) for n in range(5000)] for _ in range(4)]
    barrier.wait()
    large = bytearray(20_000_000)
before = resident()
barrier = threading.Barrier(8)
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
if sys.argv[1] == "bound":
    allocator.trim()
print(json.dumps(resident() - before))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
@pytest.mark.slow
def test_memory_that_was_freed_is_given_back() -> None:
    def grown(how: str) -> int:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=120, check=True
        )
        return int(json.loads(ended.stdout))

    assert grown("bound") < 12_000  # KiB, of 560,000 in use at a time
    assert grown("as it is") > 2 * grown("bound")
