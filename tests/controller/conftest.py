"""The store of jobs in the session's Redis, which the parts of a controller read and write."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from headrace_core.jobs.job_store import JobStore


@pytest.fixture
def jobs(redis: Redis) -> JobStore:
    return JobStore(redis)
