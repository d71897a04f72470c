"""Samples completions, and measures what the job's graders need of them (`PolicyMeasurements`).

    generate ──► no reference answer is needed ─────────────────────────────────────────► SampledCompletion
             └─► cut where the answer begins ──► score(prompt + reasoning + reference) ──► SampledCompletion

If no grader needs a measurement, a completion is passed on as it was sampled.

Invariants: a completion is cut after it was generated, so that its token ids are those sampled, and the answer that it
wrote itself is discarded. All log-probabilities of a reference answer are of one policy version, at the job's
temperature, and that version is the answer's behaviour policy. A completion that begins no answer is not scored.
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
    """A reference answer for the learner: R tokens after the reasoning, with their log-probabilities."""

    token_ids: npt.NDArray[np.int32]
    scored: Scored


@dataclass(frozen=True, slots=True)
class SampledCompletion:
    """One completion. `sampled` ends where the answer begins, if a reference answer was scored."""

    sampled: Sampled
    measured: PolicyMeasurements | None = None
    reference: ReferenceScore | None = None
    unstable: bool | None = None
    """Whether the reference answer begins where the tokenizer would not split the text; `None` without an answer."""

    @property
    def versions(self) -> set[int]:
        """The policy versions that sampled the tokens or scored the reference answer."""
        scored = set() if self.reference is None else {self.reference.scored.version}
        return {int(version) for version in self.sampled.versions} | scored


class CompletionSampler:
    """Samples for one job's training, or for its evaluations (`evaluating`), whose graders may need less."""

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
        """`slot_freed` is called whenever a request of the engine has ended.

        Raises `InvalidData` for a row without a reference answer, or whose answer does not fit in the context, and
        `InvalidRequest` for two graders with different reference answers.
        """
        self._needs = needs(grader, evaluating)
        self._spec = _likelihood(list(asked(grader, evaluating)))
        self._references = None if self._spec is None else ReferenceAnswers(tokenizer, self._spec, prompts)
        self._engine = engine
        self._settings = settings
        self._slot_freed = slot_freed
        self.tightest: tuple[int, Prompt] | None = None
        """(maximum completion length in tokens, row) of the row whose reference answer leaves the least for a
        completion; None if every row leaves `max_tokens`."""
        if self._references is not None:
            for prompt in prompts:
                self._check_reference(self._references, prompt, tokenizer.vocabulary)
            self.tightest = self._tightest(prompts)

    async def complete(self, prompt: Prompt, configs: Sequence[SamplingConfig]) -> list[SampledCompletion]:
        """Completions of one prompt, one for each config, generated and measured concurrently."""
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
        """Log-probabilities of the reference answer directly after prompt and opening, without any reasoning."""
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
        """`max_tokens`, or less if the reference answer would not fit in the context after so long a completion."""
        if self._references is None:
            return config.max_tokens
        opening, answer = self._references.alone(prompt.data)
        return min(config.max_tokens, self._settings.max_context - len(prompt.token_ids) - len(opening) - len(answer))

    def _tightest(self, prompts: Sequence[Prompt]) -> tuple[int, Prompt] | None:
        config = SamplingConfig(self._settings.max_tokens)
        lengths = [(self._free_tokens(prompt, config), prompt) for prompt in prompts]
        tightest = min(lengths, key=lambda entry: entry[0], default=None)
        return None if tightest is None or tightest[0] == config.max_tokens else tightest

    def _check_reference(self, references: ReferenceAnswers, prompt: Prompt, vocabulary: int | None) -> None:
        """Raises `InvalidData` for a reference answer with an unknown token, or that leaves no token for a
        completion."""
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
    """The measurements that `grader` and its components need in training, or in an evaluation."""
    return frozenset[Need]().union(*(each.needs() for each in asked(grader, evaluating)))


def _likelihood(graders: Sequence[GraderSpec]) -> LikelihoodSpec | None:
    """The grader with reference answers, if there is one. Two would need different completions."""
    specs = [grader for grader in graders if isinstance(grader, LikelihoodSpec)]
    if len(specs) > 1:
        names = ", ".join(f"'{grader.name}'" for grader in specs)
        raise InvalidRequest(f"a job has one grader with reference answers, not {names}", param="grader")
    return specs[0] if specs else None


def _cut(sampled: Sampled, size: int) -> Sampled:
    """The first `size` tokens, with the finish reason `stop`, because it ends where the answer begins."""
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
