"""`multi` of OpenAI's graders: combines several graders by a formula over their names.

    score(group) ─┬► grader a ─┐
                  ├► grader b ─┼► sample by sample: calculate_output ─► one outcome
                  └► grader c ─┘  (at the same time)

If a grader fails, the sample fails, and the failure names the grader. A grader that does not apply is left out of the
formula's sums, minima and maxima (so that graders for several tasks can each apply to their own rows); the sample is
not applicable only if nothing of the formula is left (see `formula`).

Each grader's value is a component under the grader's name; its own components are `name.component`, its notes
`name.note`. If one of the graders rewards a reference answer's likelihood, the outcome holds the derivative of the
result with respect to it.
"""

from __future__ import annotations

import asyncio
import keyword
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score, score_fault
from headrace_core.types.likelihood import Likelihood

from ..protocol import Need, Reward, Sample
from ..user_code.notes import notes_of
from .formula import FUNCTIONS, Formula, NotComputable
from .spec import AnyGrader, GraderSpec, Truth

MAX_GRADERS = 32


def _by_name(graders: Any) -> Any:
    """Graders by name, from a map, a list of named graders, or a single grader (the type in OpenAI's client)."""
    if isinstance(graders, Mapping):
        if isinstance(graders.get("type"), str):
            graders = {str(graders.get("name") or graders["type"]): graders}
        return {name: _named(name, grader) for name, grader in graders.items()}
    if not isinstance(graders, list):
        return graders
    named: dict[str, Any] = {}
    for grader in graders:
        name = str(
            grader.get("name") or grader.get("type") if isinstance(grader, Mapping) else getattr(grader, "name", None)
        )
        if name in named:
            raise ValueError(f"two graders are called {name!r}")
        named[name] = grader
    return named


def _named(name: Any, grader: Any) -> Any:
    unnamed = isinstance(grader, Mapping) and grader.get("name") is None
    return {**grader, "name": name} if unnamed else grader


class MultiSpec(GraderSpec):
    """OpenAI's fields. A list of graders is accepted too, and becomes a map."""

    type: Literal["multi"]
    graders: Annotated[dict[str, AnyGrader], BeforeValidator(_by_name), Field(min_length=1, max_length=MAX_GRADERS)]
    """The graders by the names that the formula uses."""
    calculate_output: str
    """The formula: see `formula`."""

    @field_validator("graders")
    @classmethod
    def _check_names(cls, graders: dict[str, GraderSpec]) -> dict[str, GraderSpec]:
        for name in graders:
            if not name.isidentifier() or keyword.iskeyword(name) or name in FUNCTIONS:
                raise ValueError(f"a formula cannot name the grader {name!r}; use letters, digits and '_'")
        return graders

    @field_validator("calculate_output")
    @classmethod
    def _check_formula(cls, source: str, info: ValidationInfo) -> str:
        if "graders" in info.data:  # else their own error is reported
            Formula.parse(source, info.data["graders"])
        return source

    def needs(self) -> frozenset[Need]:
        """Everything that at least one of the graders needs."""
        return frozenset().union(*(grader.needs() for grader in self.graders.values()))

    def truths(self) -> dict[str, Truth]:
        """The truths of all graders, each about that grader's component."""
        return {
            f"{name}.{truth}": known.within(name, grader.high_from())
            for name, grader in self.graders.items()
            for truth, known in grader.truths().items()
        }

    def opinions(self) -> dict[str, float]:
        """Every grader's component, with its threshold."""
        return {name: grader.high_from() for name, grader in self.graders.items()}


class Multi:
    """The reward of a `multi` grader: starts, calls and closes its graders together."""

    def __init__(self, spec: MultiSpec, graders: Mapping[str, Reward]) -> None:
        self._graders = dict(graders)
        self._formula = Formula.parse(spec.calculate_output, spec.graders)

    async def start(self) -> None:
        """Start every grader. If one fails, closes the others and raises an `InvalidRequest` that names it."""
        starts = (_start(name, grader) for name, grader in self._graders.items())
        try:
            for fault in await asyncio.gather(*starts, return_exceptions=True):
                if fault is not None:
                    raise fault
        except BaseException:
            await self.close()
            raise

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome a sample, in order; see the module."""
        scored = await asyncio.gather(*(grader.score(samples) for grader in self._graders.values()))
        return [
            self._combined(dict(zip(self._graders, outcomes, strict=True))) for outcomes in zip(*scored, strict=True)
        ]

    async def close(self) -> None:
        """Close every grader, even if closing another fails; raises the first error."""
        for fault in await asyncio.gather(*(g.close() for g in self._graders.values()), return_exceptions=True):
            if fault is not None:
                raise fault

    def _combined(self, outcomes: Mapping[str, Outcome]) -> Outcome:
        values, components, sample_faults = dict[str, float](), dict[str, float](), list[str]()
        notes = dict[str, str]()
        likelihoods = dict[str, Likelihood]()
        for name, outcome in outcomes.items():
            if isinstance(outcome, Failure):
                return Failure(outcome.kind, f"grader '{name}': {outcome.message}", outcome.traceback)
            if isinstance(outcome, Score):
                values[name] = outcome.value
                if outcome.likelihood is not None:
                    likelihoods[name] = outcome.likelihood
                components |= {f"{name}.{part}": value for part, value in outcome.components.items()}
                notes |= {f"{name}.{part}": text for part, text in outcome.notes.items()}
                if outcome.sample_fault:
                    sample_faults.append(f"grader '{name}': {outcome.sample_fault}")
        try:
            result = self._formula.value(values)
        except NotComputable as fault:
            return Failure("invalid_value", str(fault))
        if result is None:
            return NotApplicable()
        if (unfit := score_fault(result)) is not None:
            return Failure("invalid_value", f"the result of the formula is {result:g}, {unfit}")
        through = [held.within(*self._formula.slope(values, name)) for name, held in likelihoods.items()]
        lacks = "; ".join(sample_faults)
        return Score(result, values | components, lacks, notes_of(notes), next(iter(through), None))


async def _start(name: str, grader: Reward) -> None:
    try:
        await grader.start()
    except InvalidRequest as fault:
        param = f"grader.graders.{name}{(fault.param or '').removeprefix('grader')}"
        raise type(fault)(f"grader '{name}': {fault.message}", param=param, code=fault.code) from None
