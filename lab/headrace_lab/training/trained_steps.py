"""The record of a step that trained on all groups of a claim, without training."""

from __future__ import annotations

from collections import Counter

from headrace_core.ledger.records import Claim, Step


def step_of(claim: Claim, max_staleness: int) -> Step:
    """The step that a learner would settle for this claim; tokens older than `max_staleness` are masked."""
    ages = Counter[int]()
    for group in claim.groups:
        for version, tokens in group.trainable_by_version.items():
            ages[claim.version - version] += tokens
    young = {age: tokens for age, tokens in sorted(ages.items()) if age <= max_staleness}
    masked = ages.total() - sum(young.values())
    return Step(claim.version, tuple(group.group_id for group in claim.groups), young, masked)
