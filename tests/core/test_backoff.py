"""The delay doubles from failure to failure up to its limit, and jitter takes at most half of it away."""

from __future__ import annotations

import pytest

from headrace_core.backoff import delay_after, jittered_delay_after


def test_the_delay_doubles_up_to_its_limit() -> None:
    assert [delay_after(n, first=0.25, limit=3.0) for n in range(1, 7)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_an_outage_of_days_does_not_overflow() -> None:
    assert delay_after(100_000, first=0.1, limit=2.0) == 2.0


@pytest.mark.parametrize(("failures", "longest"), [(1, 0.1), (4, 0.8), (9, 2.0)])
def test_jitter_leaves_between_half_of_the_delay_and_all_of_it(failures: int, longest: float) -> None:
    delays = [jittered_delay_after(failures, first=0.1, limit=2.0) for _ in range(1000)]
    assert longest / 2 <= min(delays) < 0.6 * longest
    assert 0.9 * longest < max(delays) <= longest
