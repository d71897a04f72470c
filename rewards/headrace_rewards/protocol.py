"""The interface of every reward: its input (`Sample`), its output (`Outcome`), its methods (`Reward`).

Invariants of every reward:

* one outcome per sample, in the order of the samples;
* a reward that failed is not a reward of zero: `Score`, `NotApplicable` (the reward abstains: it returned `None`) and
  `Failure` are three types, and a `Score` is always finite;
* an error of the user's code (an exception, a hang, a crash, NaN) is returned as a `Failure`; `score` raises only for
  errors of the service itself.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from headrace_core.protocols.grader_check import NotApplicable, Outcome

Need = Literal["reference", "reference_alone", "distribution"]
"""What a reward needs measured by the policy that sampled the completion: see `PolicyMeasurements`."""


class SampleKey(msgspec.Struct, frozen=True):
    """Identifies a sampled completion within its job: a completion that is scored again has the same key."""

    group: int
    completion: int
    greedy: bool = False
    """A greedy completion is compared with the sampled ones, but is not part of the group: no statistic over the group
    counts it."""


class PolicyMeasurements(msgspec.Struct, frozen=True):
    """Measurements of a completion by the policy that sampled it, in nats; `None` where no reward needs them.

    T tokens of the completion, R tokens of the row's reference answer.
    """

    logprobs: tuple[float, ...]
    """[T] log-probabilities of the sampled tokens."""
    reference: tuple[float, ...] | None = None
    """[R] log-probabilities of the reference answer's tokens after the reasoning; empty if the completion opened no
    answer."""
    reference_alone: tuple[float, ...] | None = None
    """[R] log-probabilities of the same tokens directly after the prompt, without the reasoning."""
    entropies: tuple[float, ...] | None = None
    """[T] entropy of the distribution that each token was sampled from."""
    certainties: tuple[float, ...] | None = None
    """[T] KL(uniform ‖ the distribution that each token was sampled from)."""


class Progress(msgspec.Struct, frozen=True):
    """How far the training was when a completion was sampled, in optimizer steps."""

    step: int
    """Steps done; 0 before the first."""
    total_steps: int
    steps_per_epoch: float
    """Steps of one pass through the training file."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion to be scored, with the row of data that its prompt comes from."""

    output_text: str
    """The completion's text. It includes special tokens, except end-of-text and padding tokens."""
    item: dict[str, Any] = field(default_factory=dict)
    """The row of data: see `headrace_core.storage.dataset.Row`."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    """The prompt: `{"role": …, "content": …}`, the last message from the user."""
    finish_reason: Literal["stop", "length"] = "stop"
    """`length`: the completion was cut off at `max_tokens`."""
    token_ids: tuple[int, ...] | None = None
    """[T] token ids of the completion; `None` if the caller has only the text."""
    draw: SampleKey | None = None
    """Which completion of the training this is; `None` in an evaluation or a grader check."""
    progress: Progress | None = None
    """`None` in a grader check."""
    measured: PolicyMeasurements | None = None
    """`None` unless the reward needs it (`GraderSpec.needs`); not sent to a user's process."""
    again: bool = False
    """The group was scored before, and is scored again because a score failed, or to see whether the scores differ. A
    statistic that a reward keeps over groups must not count it a second time."""
    wanted: bool = True
    """False: the completion has its score already, and is passed only for rewards that compare the completions of a
    group (see `score_wanted`)."""

    @property
    def of_group(self) -> bool:
        """Whether this is one of a group's sampled completions, over which a reward may compute statistics."""
        return self.draw is not None and not self.draw.greedy

    def as_openai(self) -> dict[str, Any]:
        """The variable `sample` of OpenAI's graders. `output_json` is `None` if the text is not JSON."""
        message = {"role": "assistant", "content": self.output_text}
        return {
            "output_text": self.output_text,
            "output_json": _parsed(self.output_text),
            "output_tools": [],
            "choices": [{"index": 0, "finish_reason": self.finish_reason, "message": message}],
        }


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a model may write a thousand opening brackets
        return None


async def score_wanted(
    samples: Sequence[Sample], score: Callable[[Sequence[Sample]], Awaitable[Sequence[Outcome]]]
) -> list[Outcome]:
    """One outcome per sample, in order, for a reward that scores each completion alone.

    Calls `score` with the samples that are `wanted`. The others get `NotApplicable`: nobody reads their outcome, so
    they are not scored a second time.
    """
    wanted = [sample for sample in samples if sample.wanted]
    outcomes = iter(await score(wanted) if wanted else ())
    return [next(outcomes) if sample.wanted else NotApplicable() for sample in samples]


class Reward(Protocol):
    """Scores completions. `score` may be called concurrently, after `start` and before `close`."""

    async def start(self) -> None:
        """Prepare for `score`. Raises `InvalidRequest` if something of the user's (a file, say) cannot be loaded."""
        ...

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome per sample, in order. A call gets all completions of one prompt (a group), even if only some are
        `wanted`."""
        ...

    async def close(self) -> None:
        """End all processes and remove all files; calls in flight return `Failure("unavailable")`. Idempotent."""
        ...
