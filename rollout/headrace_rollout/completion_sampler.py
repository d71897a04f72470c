"""Completions as rewards and the learner get them: generated, and measured by the policy that sampled.

    generate ──► no reference answer is needed ──────────────────────────────────────────────► Traced
             └─► cut where the answer opens ──► engine.score(prompt + reasoning + reference) ──► Traced

What is measured is what the job's graders ask for; with none that asks, a completion goes through as it was sampled.

Invariants: a completion is cut after it was generated, so its ids are those sampled, and what it wrote as its own
answer is left out of everything; all log-probabilities of one reference answer are of one policy version, at the job's
temperature, and that version is the answer's behaviour policy; where no answer was opened nothing is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace_core.concurrency import all_or_none
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidData, InvalidRequest
from headrace_rewards.graders.spec import GraderSpec
from headrace_rewards.graders.verifier_free.base import LikelihoodSpec, asked
from headrace_rewards.protocol import Need, PolicyMeasurements

from .engines.engine import Engine, Sampled, SamplingConfig, Scored
from .prompts import Prompt, Tokenizer
from .reference_answers import Opened, ReferenceAnswers

Floats = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ReferenceScore:
    """A reference answer that goes to the learner: R tokens after the reasoning."""

    token_ids: npt.NDArray[np.int32]
    scored: Scored


@dataclass(frozen=True, slots=True)
class SampledCompletion:
    """One completion: `sampled` is cut where the answer opens, if a reference answer is measured."""

    sampled: Sampled
    measured: PolicyMeasurements | None = None
    reference: ReferenceScore | None = None
    unstable: bool | None = None
    """The tokenizer would not cut where the reference answer was put; `None` where none was."""

    @property
    def versions(self) -> set[int]:
        """The policy versions that sampled its tokens, or scored its reference answer."""
        scored = set() if self.reference is None else {self.reference.scored.version}
        return {int(version) for version in self.sampled.versions} | scored


class CompletionSampler:
    """Of one job's training, or of its evaluations (`evaluating`), whose graders may ask for less."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        grader: GraderSpec,
        settings: Hyperparameters,
        prompts: Sequence[Prompt],
        *,
        evaluating: bool = False,
        slot_freed: Callable[[], None] = lambda: None,
    ) -> None:
        """`slot_freed` is called each time the engine has one request less. Raises `InvalidData` for a row that lacks
        its reference answer, or room for it, `InvalidRequest` for two graders that would measure different ones."""
        self._needs = needs(grader, evaluating)
        self._spec = _likelihood(list(asked(grader, evaluating)))
        self._references = None if self._spec is None else ReferenceAnswers(tokenizer, self._spec, prompts)
        self._engine = engine
        self._settings = settings
        self._slot_freed = slot_freed
        self.tightest: tuple[int, Prompt] | None = None
        """(tokens of its longest completion, row) of the row whose reference answer leaves the least of `max_tokens`;
        None where all leave it whole."""
        if self._references is not None:
            for prompt in prompts:
                self._check_reference(self._references, prompt, tokenizer.vocabulary)
            self.tightest = self._tightest(prompts)

    async def complete(self, prompt: Prompt, configs: Sequence[SamplingConfig]) -> list[SampledCompletion]:
        """Completions of one prompt, one a config, generated and measured side by side."""
        alone = await self._alone(prompt) if "reference_alone" in self._needs else None
        return await all_or_none(self._complete(prompt, config, alone) for config in configs)

    async def _complete(self, prompt: Prompt, config: SamplingConfig, alone: Floats | None) -> SampledCompletion:
        config = replace(
            config, max_tokens=self._free_tokens(prompt, config), distribution="distribution" in self._needs
        )
        try:
            sampled = await self._engine.generate(prompt.token_ids, config)
        finally:
            self._slot_freed()
        if not self._needs:
            return SampledCompletion(sampled)
        if self._references is None:
            return SampledCompletion(sampled, _measured(sampled))
        opened = self._references.open(sampled.token_ids, prompt.data)
        if opened is None:
            return SampledCompletion(sampled, _measured(sampled, (), alone))
        return await self._with_reference(prompt, _cut(sampled, opened.reasoning), opened, alone)

    async def _with_reference(
        self, prompt: Prompt, sampled: Sampled, opened: Opened, alone: Floats | None
    ) -> SampledCompletion:
        scored = await self._score(np.concatenate([prompt.token_ids, sampled.token_ids]), opened.answer)
        measured = _measured(sampled, _floats(scored.logprobs), alone)
        return SampledCompletion(sampled, measured, ReferenceScore(opened.answer, scored), not opened.stable)

    async def _alone(self, prompt: Prompt) -> Floats | None:
        """Log-probabilities of the reference answer's tokens after the prompt and the opening, without reasoning."""
        if self._references is None:
            return None
        opening, answer = self._references.alone(prompt.data)
        return _floats((await self._score(np.concatenate([prompt.token_ids, opening]), answer)).logprobs)

    async def _score(self, before: npt.NDArray[np.int32], answer: npt.NDArray[np.int32]) -> Scored:
        try:
            tokens = np.concatenate([before, answer])
            return await self._engine.score(tokens, len(before), self._settings.temperature)
        finally:
            self._slot_freed()

    def _free_tokens(self, prompt: Prompt, config: SamplingConfig) -> int:
        """`max_tokens`, less what the context needs for the reference answer after a completion of that length."""
        if self._references is None:
            return config.max_tokens
        opening, answer = self._references.alone(prompt.data)
        return min(config.max_tokens, self._settings.max_context - len(prompt.token_ids) - len(opening) - len(answer))

    def _tightest(self, prompts: Sequence[Prompt]) -> tuple[int, Prompt] | None:
        whole = SamplingConfig(self._settings.max_tokens)
        rooms = [(self._free_tokens(prompt, whole), prompt) for prompt in prompts]
        least = min(rooms, key=lambda found: found[0], default=None)
        return None if least is None or least[0] == whole.max_tokens else least

    def _check_reference(self, references: ReferenceAnswers, prompt: Prompt, vocabulary: int | None) -> None:
        """Raises `InvalidData`."""
        ids = np.concatenate(references.alone(prompt.data))
        if vocabulary is not None and ids.max(initial=-1) >= vocabulary:
            raise InvalidData(
                f"line {prompt.data.line}: the reference answer has the token id {ids.max()}, and the model knows ids "
                f"0 … {vocabulary - 1}"
            )
        if self._free_tokens(prompt, SamplingConfig(1)) < 1:
            raise InvalidData(
                f"line {prompt.data.line}: prompt and reference answer leave no room for a completion in the context "
                f"of {self._settings.max_context} tokens: shorten them, or raise max_context"
            )


def needs(grader: GraderSpec, evaluating: bool) -> frozenset[Need]:
    """What training, or an evaluation, measures for `grader` and those that it holds."""
    return frozenset[Need]().union(*(each.needs() for each in asked(grader, evaluating)))


def _likelihood(graders: Sequence[GraderSpec]) -> LikelihoodSpec | None:
    """The grader that says where reference answers are put. Two would need two completions."""
    found = [grader for grader in graders if isinstance(grader, LikelihoodSpec)]
    if len(found) > 1:
        names = ", ".join(f"'{grader.name}'" for grader in found)
        raise InvalidRequest(f"a job has one grader with reference answers, not {names}", param="grader")
    return found[0] if found else None


def _cut(sampled: Sampled, size: int) -> Sampled:
    """The first `size` tokens. It ends there because the answer opens: `stop`."""
    entropies, certainties = (
        None if column is None else column[:size] for column in (sampled.entropies, sampled.certainties)
    )
    return Sampled(
        sampled.token_ids[:size], sampled.logprobs[:size], sampled.versions[:size], "stop", entropies, certainties
    )


def _measured(sampled: Sampled, reference: Floats | None = None, alone: Floats | None = None) -> PolicyMeasurements:
    return PolicyMeasurements(
        logprobs=_floats(sampled.logprobs),
        reference=reference,
        reference_alone=alone,
        entropies=None if sampled.entropies is None else _floats(sampled.entropies),
        certainties=None if sampled.certainties is None else _floats(sampled.certainties),
    )


def _floats(array: npt.NDArray[np.float32]) -> Floats:
    return tuple(array.tolist())
