"""glibc's allocator gives back what was freed: measured on a process of its own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, threading, sys, time
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
    limit = time.monotonic() + 60
    while len(os.listdir("/proc/self/task")) > 1:  # join() returns before a thread has given its memory back
        assert time.monotonic() < limit
        time.sleep(0.01)
    allocator.trim()
print(json.dumps(resident() - before))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
@pytest.mark.slow
def test_memory_that_was_freed_is_given_back() -> None:
    def grown(how: str, at_once: int) -> list[int]:
        command = [sys.executable, "-c", PROGRAM, how]
        programs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(at_once)]
        return [int(json.loads(program.communicate(timeout=120)[0])) for program in programs]

    # Side by side, because threads end in an order then that a second arena would not give back.
    bound = [growth for _ in range(4) for growth in grown("bound", 6)]
    assert max(bound) < 4_000  # KiB, of 560,000 in use at a time
    assert grown("as it is", 1)[0] > 2 * max(bound)
