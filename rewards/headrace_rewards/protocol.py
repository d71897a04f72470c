"""What every reward takes and gives.

Invariants, held for every reward:

* one outcome a sample, in the order of the samples;
* a reward that failed is not a reward of zero: `Score`, `NotApplicable` (the reward has no opinion: it returned `None`)
  and `Failure` are three types, and a `Score` is always finite;
* what a user got wrong (an exception, a hang, a crash, NaN) comes back as a `Failure`; `score` raises only for faults
  of the service itself.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from headrace_core.protocols.grader_check import NotApplicable, Outcome

Need = Literal["reference", "reference_alone", "distribution"]
"""What a reward wants measured by the policy that sampled: see `PolicyMeasurements`."""


class SampleKey(msgspec.Struct, frozen=True):
    """Which sampled completion of a job this is: the same completion scored again has the same draw."""

    group: int
    completion: int
    greedy: bool = False
    """It is compared with the group's others, and is none of them: no statistic over the group counts it."""


class PolicyMeasurements(msgspec.Struct, frozen=True):
    """What the policy that sampled a completion makes of it, in nats; `None` where nobody needs it.

    T tokens of the completion, R tokens of the row's reference answer.
    """

    logprobs: tuple[float, ...]
    """[T] log-probabilities of the sampled tokens."""
    reference: tuple[float, ...] | None = None
    """[R] log-probabilities of the reference answer's tokens after the reasoning; empty where no answer was opened."""
    reference_alone: tuple[float, ...] | None = None
    """[R] of the same tokens straight after the prompt."""
    entropies: tuple[float, ...] | None = None
    """[T] entropy of the distribution that each token was sampled from."""
    certainties: tuple[float, ...] | None = None
    """[T] KL(uniform ‖ that distribution)."""


class Progress(msgspec.Struct, frozen=True):
    """How far the training was when a completion was sampled, in optimizer steps."""

    step: int
    """0 before the first."""
    total_steps: int
    steps_per_epoch: float
    """Of a pass through the training file."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion to be scored, with the row of data that asked for it."""

    output_text: str
    """The completion as it was written, special tokens too, but for those that end a text or fill it up."""
    item: dict[str, Any] = field(default_factory=dict)
    """The row: see `headrace_core.storage.dataset.Row`."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    """The prompt: `{"role": …, "content": …}`, the last one from the user."""
    finish_reason: Literal["stop", "length"] = "stop"
    """`length`: the completion was cut off at `max_tokens`."""
    token_ids: tuple[int, ...] | None = None
    """[T] token ids of the completion; `None` where the caller has only text."""
    draw: SampleKey | None = None
    """`None` outside training: an evaluation, or a grader that is tried."""
    progress: Progress | None = None
    """`None` for a grader that is tried."""
    measured: PolicyMeasurements | None = None
    """`None` unless the reward needs it (`GraderSpec.needs`); not sent to a user's process."""
    again: bool = False
    """Its group was scored before, and is scored now because a score failed, or to see whether it differs: no statistic
    that a reward keeps over groups counts it a second time."""
    wanted: bool = True
    """False: it has its score, and is here for rewards that compare the completions of a group; see `each`."""

    @property
    def of_group(self) -> bool:
        """Whether it is one of a group's sampled completions, over which a reward may make statistics."""
        return self.draw is not None and not self.draw.greedy

    def as_openai(self) -> dict[str, Any]:
        """The `sample` that OpenAI's graders see. `output_json` is `None` where the text is not JSON."""
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


async def each(
    samples: Sequence[Sample], score: Callable[[Sequence[Sample]], Awaitable[Sequence[Outcome]]]
) -> list[Outcome]:
    """One outcome a sample, in order, of a reward that looks at every completion by itself: `score` is asked for those
    that are wanted, and the others, whose outcome nobody reads, are not scored a second time."""
    asked = [sample for sample in samples if sample.wanted]
    given = iter(await score(asked) if asked else ())
    return [next(given) if sample.wanted else NotApplicable() for sample in samples]


class Reward(Protocol):
    """Scores completions. `score` may be called concurrently, after `start` and before `close`."""

    async def start(self) -> None:
        """Be ready to score; raises `InvalidRequest` where the user's part (a file, say) cannot be loaded."""
        ...

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome a sample, in order. One call holds all completions of one prompt: a group, also where only some
        are `wanted`."""
        ...

    async def close(self) -> None:
        """Leave no process and no file behind; calls in flight end with `Failure("unavailable")`. Idempotent."""
        ...
