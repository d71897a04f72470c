"""Derived seeds meet neither within a job nor between jobs of neighbouring seeds."""

from __future__ import annotations

from headrace_core.seeds import derived_seed


def test_a_thousand_workers_of_several_jobs_all_have_seeds_of_their_own() -> None:
    seeds = [derived_seed(seed, f"rollout-{n}") for seed in (0, 1, 2, 3, 7, 2**32 - 1) for n in range(1000)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert min(seeds) < 2**24 < 2**32 - 2**24 < max(seeds), "the whole range is used"


def test_what_is_hashed_is_told_apart_by_its_parts() -> None:
    assert derived_seed(1, 23) != derived_seed(12, 3)
    assert derived_seed(0, "1") != derived_seed(0, 1)
    assert derived_seed(0, "rollout-0") == 0xA13354B3, "the same in every process, on every machine"
