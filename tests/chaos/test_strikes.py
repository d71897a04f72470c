"""The plan of a campaign, and the strike itself on a process of our own."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from headrace_chaos.fault_injection import plan, strike

KINDS = ("learner", "redis", "gateway")


@pytest.fixture
def victim() -> Iterator[psutil.Process]:
    """A process that waits for its standard input to close."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.communicate()


def test_a_seed_makes_one_plan() -> None:
    assert plan(50, KINDS, random.Random(3)) == plan(50, KINDS, random.Random(3))
    assert plan(50, KINDS, random.Random(3)) != plan(50, KINDS, random.Random(4))


def test_every_kind_has_its_share_and_the_first_of_each_kills() -> None:
    assert Counter(each.kind for each in plan(50, KINDS, random.Random(0))) == {
        "learner": 17,
        "redis": 17,
        "gateway": 16,
    }
    small = plan(3, KINDS, random.Random(0))
    assert {each.kind for each in small if each.stopped is None} == set(KINDS)
    assert any(each.stopped for each in plan(50, KINDS, random.Random(0)))


def test_a_killed_process_ends(victim: psutil.Process) -> None:
    assert strike(victim, None)
    assert victim.wait(10) in (-9, None)
    assert not strike(victim, None)


def test_a_stopped_process_goes_on(victim: psutil.Process) -> None:
    assert strike(victim, 0.01)
    assert victim.is_running()
    assert victim.status() != psutil.STATUS_STOPPED
