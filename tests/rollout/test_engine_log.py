"""What an engine's processes say is passed on, and its last error kept."""

from __future__ import annotations

import subprocess
import sys

READS = """
import subprocess, sys, time
from headrace_rollout.engines.vllm.engine_log import EngineLog

log = EngineLog()
child = subprocess.Popen([sys.executable, "-c", "while True: print('a line')"])
end = time.monotonic() + 3.0
while time.monotonic() < end:
    assert log.last_error is None
child.kill()
child.wait()
"""
PROGRAM = """
import subprocess, sys
from headrace_rollout.engines.vllm.engine_log import EngineLog

log = EngineLog()
says = '''
import sys
print("loading", flush=True)
print("\\x1b[31m(EngineCore pid=7)\\x1b[0m ERROR] torch.OutOfMemoryError: 200.00 GiB are too many", flush=True)
print("Traceback (most recent call last):", file=sys.stderr)
print("\\\\r 10 %", end="", flush=True)
print("\\\\r 99 % Bearer abcdefghijklmnop", flush=True)
print("RuntimeError: Engine core initialization failed. See root cause above.", file=sys.stderr)
'''
child = subprocess.Popen([sys.executable, "-c", says])
print("between")
child.wait()
log.release()
log.release()
print("after")
for thread in __import__("threading").enumerate():
    if thread.name == "engine-log":
        thread.join(10)
print("last", log.last_error, file=sys.stderr)
"""


def test_the_last_error_that_says_something_is_kept_and_all_is_passed_on() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert "last torch.OutOfMemoryError: 200.00 GiB are too many" in told.stderr
    assert "Traceback (most recent call last):" in told.stderr
    assert " 10 %" in told.stdout
    assert "99 % Bearer ***" in told.stdout
    assert "abcdefghijklmnop" not in told.stdout + told.stderr
    assert {"loading", "between", "after"} <= set(told.stdout.split())
    assert told.stdout.strip().endswith("after")


def test_the_last_error_can_be_read_while_the_engine_writes() -> None:
    """An engine that dies writes much at the moment in which the cause is looked for."""
    subprocess.run([sys.executable, "-c", READS], stdout=subprocess.DEVNULL, check=True, timeout=60)
