"""The modules of simulation/ can be imported by name, and what they share with evidence/ and benchmarks/."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def logs_are_heard_again() -> Iterator[None]:
    """A campaign silences the logs of its process, and the tests after it read theirs."""
    configured = structlog.get_config()
    yield
    structlog.configure(**configured)
