"""What the learner's process sets up for torch."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from headrace_learner.distributed.torch_thread import torch_thread

_FAULTS = """
import resource, torch
{setup}
for _ in range(30):  # memalign finds a place for each size by and by
    torch.zeros(16_000_000)
began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.zeros(16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began)
"""


def test_torch_works_with_the_threads_asked_for() -> None:
    before = torch.get_num_threads()
    thread = torch_thread(1)
    try:
        assert thread.submit(torch.get_num_threads).result(timeout=10) == 1
    finally:
        thread.shutdown()
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="set for glibc alone")
@pytest.mark.slow
def test_arrays_of_the_next_step_cost_no_page_faults() -> None:
    def faults(setup: str) -> int:
        script = _FAULTS.format(setup=setup)
        ended = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
        return int(ended.stdout)

    kept = faults("from headrace_learner.distributed.torch_thread import keep_freed_memory; keep_freed_memory()")
    assert kept < 100
    assert faults("") > 50 * max(kept, 1)  # 5 arrays of 64 MB by pages of 4 KiB: some 78,000
