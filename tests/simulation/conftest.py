"""The modules of simulation/ can be imported by name, and what they share with evidence/ and benchmarks/."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import structlog

from paths import ROOT

sys.path[:0] = [str(ROOT / folder) for folder in ("simulation", "evidence", "benchmarks")]


@pytest.fixture(autouse=True)
def logs_are_heard_again() -> Iterator[None]:
    """A campaign silences the logs of its process, and the tests after it read theirs."""
    configured = structlog.get_config()
    yield
    structlog.configure(**configured)
