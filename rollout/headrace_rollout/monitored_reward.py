"""Scores groups with the job's reward, and collects the reward's figures.

    score ──► outcomes ──► figures ──► `take`: the entry of the metrics stream
                │
                └─ a share of the groups ─► queue (bounded; full: skipped) ─► `run`: score again, one group at a time,
                                                                              and from time to time the drift panel

Invariants: the figures are of sampled completions (of an algorithm's greedy completion, only failures are counted). A
group never waits for a second scoring. A failure is never a score: it ends its group, or is left out of it, by the
job's setting `reward_failure`. Failures of second scorings are counted separately.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from msgspec.structs import replace

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.config.algorithm_presets import ALGORITHMS
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_core.types.metrics import Flips, Pairs, RewardMetrics, Tally
from headrace_core.types.reward_statistics import is_in_sample
from headrace_rewards.graders.audited import AUDIT_FAILED
from headrace_rewards.graders.spec import GraderSpec
from headrace_rewards.protocol import Reward, Sample, SampleKey

from .reward_scoring import RewardFailed, score

DRIFT_PANEL_SIZE = 8
"""Size of the drift panel: the first groups with a score, which are scored again and again while the worker lives. They
are complete groups, because a reward may compare the completions of a group."""
MAX_WAITING = 8
"""Length of the queue of groups to be scored again; further groups are skipped."""
MAX_PAIRS = 10
"""Pairs of components of a multi grader whose disagreement is counted: as many as five graders have."""
MAX_REPORTED_FAILURES = 5
"""Number of reward failures that one worker reports with their traceback; all are counted."""


@dataclass(frozen=True, slots=True)
class _Scored:
    samples: Sequence[Sample]
    outcomes: Sequence[Outcome]


class MonitoredReward:
    """A job's reward with its figures. The caller starts and closes the reward itself."""

    def __init__(
        self,
        reward: Reward,
        spec: GraderSpec,
        worker: str,
        settings: Hyperparameters,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._reward, self._clock = reward, clock
        self._settings = settings
        self._middle, self._truths, self._opinions = spec.high_from(), spec.truths(), spec.opinions()
        self._pairs = list(itertools.combinations(self._opinions, 2))[:MAX_PAIRS]
        now = self._clock.time()
        self._figures = self._taken = RewardMetrics(worker=worker, started=now, time=now)
        self._waiting: asyncio.Queue[_Scored] = asyncio.Queue(MAX_WAITING)
        self._panel: list[_Scored] = []
        self._since_panel = 0
        self._reported = 0
        self._unreported: list[tuple[int, Failure]] = []

    @property
    def failures(self) -> Mapping[str, int]:
        """Number of completions whose reward failed, retries included, by kind."""
        return self._figures.failures

    def take(self) -> RewardMetrics | None:
        """The figures since the start; `None` if they have not changed since the last call."""
        if self._figures is self._taken:
            return None
        self._figures = self._taken = replace(self._figures, time=self._clock.time())
        return self._taken

    def take_failures(self) -> list[tuple[int, Failure]]:
        """(group, failure) of the failures to report that earlier calls have not returned."""
        unreported, self._unreported = self._unreported, []
        return unreported

    # ── scoring a group ──────────────────────────────────────────────────────────────────────────────────────────────

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome for each sample of a group: the sampled ones, then the greedy one if the algorithm uses it.

        Raises `RewardFailed` if samples failed, retries included, and the group cannot be trained on without them.
        """
        outcomes = await score(self._reward, samples, self._settings.reward_attempts)
        failed = self._refusal(outcomes)
        self._count(samples, outcomes, left_out=failed is None)
        if failed is not None:
            raise failed
        self._watch(_Scored(samples, outcomes))
        return outcomes

    def _refusal(self, outcomes: Sequence[Outcome]) -> RewardFailed | None:
        failures = [o for o in outcomes if isinstance(o, Failure)]
        if not failures:
            return None
        s, facts = self._settings, ALGORITHMS[self._settings.algorithm]
        size = len(outcomes) - facts.wants_greedy
        sampled, greedy = outcomes[:size], outcomes[size:]
        enough = sum(isinstance(o, Score) for o in sampled) >= (2 if facts.compares_within_group else 1)
        if s.reward_failure == "leave_out" and enough and not any(isinstance(o, Failure) for o in greedy):
            return None
        return RewardFailed(failures, len(outcomes))

    def _count(self, samples: Sequence[Sample], outcomes: Sequence[Outcome], left_out: bool) -> None:
        f = self._figures
        failures = [o for o in outcomes if isinstance(o, Failure)]
        sampled = [o for o, sample in zip(outcomes, samples, strict=True) if sample.of_group]
        scores = [o for o in sampled if isinstance(o, Score)]
        self._figures = replace(
            f,
            groups=f.groups + 1,
            completions=f.completions + len(sampled),
            not_applicable=f.not_applicable + sum(isinstance(o, NotApplicable) for o in sampled),
            sample_parse_errors=f.sample_parse_errors + sum(bool(o.sample_fault) for o in scores),
            failures=_added(f.failures, failures),
            left_out=f.left_out + len(failures) * left_out,
            truth={name: self._flips(name, scores) for name in self._truths},
            between={f"{a} / {b}": self._between(a, b, scores) for a, b in self._pairs},
            audit_failed=f.audit_failed + sum(map(_audit_failed, scores)),
        )
        self._queue_reports(samples[0].draw, {o.kind: o for o in reversed(failures)})

    def _queue_reports(self, draw: SampleKey | None, first: Mapping[str, Failure]) -> None:
        """Queue the first failure of each kind in a group for `take_failures`."""
        shown = list(first.values())[: MAX_REPORTED_FAILURES - self._reported]
        self._reported += len(shown)
        self._unreported += [(-1 if draw is None else draw.group, failure) for failure in shown]

    def _flips(self, name: str, scores: Sequence[Score]) -> Flips:
        truth = self._truths[name]
        judged = [s for s in scores if name in s.components and (not truth.part or truth.part in s.components)]
        if truth.part:
            high = [s.components[truth.part] >= truth.part_high_from for s in judged]
        else:
            high = [s.value >= self._middle for s in judged]
        truly_high = [s.components[name] >= truth.high_from for s in judged]
        return self._figures.truth.get(name, Flips()).with_group(high, truly_high)

    def _between(self, one: str, other: str, scores: Sequence[Score]) -> Tally:
        both, high = [s.components for s in scores if {one, other} <= s.components.keys()], self._opinions
        disagree = ((c[one] >= high[one]) != (c[other] >= high[other]) for c in both)
        return self._figures.between.get(f"{one} / {other}", Tally()).with_group(disagree)

    def _watch(self, scored: _Scored) -> None:
        """Add the group to the panel while that is not full, and queue it to be scored again if it is in the sample."""
        share, draw = self._settings.reward_recheck, scored.samples[0].draw
        if not share or draw is None:
            return
        self._since_panel += 1
        if len(self._panel) < DRIFT_PANEL_SIZE and any(isinstance(outcome, Score) for outcome in scored.outcomes):
            self._panel.append(scored)
        if is_in_sample(share, self._settings.seed, "again", draw.group):
            try:
                self._waiting.put_nowait(scored)
            except asyncio.QueueFull:
                self._figures = replace(self._figures, again_skipped=self._figures.again_skipped + 1)

    # ── second scorings ──────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> NoReturn:
        """Score queued groups again, and the panel when enough groups have passed. Runs until it is cancelled."""
        while True:
            pairs = await self._again([await self._waiting.get()])
            self._figures = replace(self._figures, again=self._figures.again + pairs)
            if self._since_panel * self._settings.reward_recheck >= DRIFT_PANEL_SIZE:
                self._since_panel = 0
                drift = await self._again(self._panel)
                self._figures = replace(self._figures, drift=drift, drift_rounds=self._figures.drift_rounds + 1)

    async def _again(self, groups: Sequence[_Scored]) -> Pairs:
        """Score these groups again. Returns the pairs of scores of all completions that have two."""
        pairs = Pairs()
        for group in groups:
            again = await self._reward.score([dataclasses.replace(sample, again=True) for sample in group.samples])
            both = [
                (first.value, second.value)
                for sample, first, second in zip(group.samples, group.outcomes, again, strict=True)
                if sample.of_group and isinstance(first, Score) and isinstance(second, Score)
            ]
            pairs = pairs.with_group([first for first, _ in both], [second for _, second in both])
            failures = _added(self._figures.again_failures, [o for o in again if isinstance(o, Failure)])
            self._figures = replace(self._figures, again_failures=failures)
        return pairs


def _added(counts: Mapping[str, int], failures: Sequence[Failure]) -> dict[str, int]:
    return dict(Counter(counts) + Counter(f.kind for f in failures))


def _audit_failed(score: Score) -> bool:
    """Whether an audit itself failed, of the grader or of a component."""
    return any(value == 1.0 for name, value in score.components.items() if name.split(".")[-1] == AUDIT_FAILED)
