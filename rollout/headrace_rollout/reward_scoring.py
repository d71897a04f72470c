"""From sampled tokens to rewards: decode, score, retry failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from headrace_core.errors import HeadraceError
from headrace_core.protocols.grader_check import Failure, Outcome, Score
from headrace_core.storage.dataset import Row
from headrace_rewards.protocol import Progress, Reward, Sample, SampleKey

from .completion_sampler import SampledCompletion
from .prompts import Tokenizer


class RewardFailed(HeadraceError):
    """Completions of a group could not be scored, retries included. That is not a reward of zero."""

    code = "reward_failed"

    def __init__(self, failures: Sequence[Failure], completions: int) -> None:
        first = failures[0]
        super().__init__(f"{by_kind(failures)} of {completions} completions; {first.kind}: {first.message}")


def by_kind(failures: Sequence[Failure]) -> str:
    """The failures counted by kind, most frequent first: `timeout 3, exception 1`."""
    return ", ".join(f"{kind} {count}" for kind, count in Counter(f.kind for f in failures).most_common())


def sample_of(
    completion: SampledCompletion,
    row: Row,
    tokenizer: Tokenizer,
    draw: SampleKey | None = None,
    progress: Progress | None = None,
) -> Sample:
    """What a reward sees of one completion. `draw` and `progress` are given in training only."""
    sampled = completion.sampled
    return Sample(
        output_text=tokenizer.text(sampled.token_ids),
        item=row.item,
        messages=row.messages,
        finish_reason=sampled.finish_reason,
        token_ids=tuple(sampled.token_ids.tolist()),
        draw=draw,
        progress=progress,
        measured=completion.measured,
    )


async def score(reward: Reward, samples: Sequence[Sample], attempts: int) -> list[Outcome]:
    """One outcome for each sample; failures are retried, up to `attempts` attempts in all.

    Each attempt passes all samples, because the reward may compare them, and marks the ones that are wanted.
    """
    outcomes = await reward.score(samples)
    for _ in range(attempts - 1):
        failed = [isinstance(outcome, Failure) for outcome in outcomes]
        if not any(failed):
            break
        group = [replace(sample, again=True, wanted=wanted) for sample, wanted in zip(samples, failed, strict=True)]
        again = await reward.score(group)
        outcomes = [new if wanted else old for old, new, wanted in zip(outcomes, again, failed, strict=True)]
    return outcomes


def value_of(outcome: Outcome) -> tuple[float | None, dict[str, float]]:
    """(reward, components). The reward is None if it was not applicable, or if it failed and is left out."""
    if isinstance(outcome, Score):
        return outcome.value, outcome.components
    return None, {}
