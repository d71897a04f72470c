"""`multi` of OpenAI's graders: one number from several graders, by a formula over their names.

    score(group) ─┬► grader a ─┐
                  ├► grader b ─┼► sample by sample: calculate_output ─► one outcome
                  └► grader c ─┘  (they score at once)

A grader that failed fails the sample, and is named. One that does not apply is left out of the formula's sums, minima
and maxima (graders of several tasks each apply to their own rows); the sample is not applicable only where nothing is
left.
What each grader gave is a component under its name; its components are `name.component`, its notes `name.note`. Of a
reference answer's likelihood, which one of the graders may reward, the result says how it follows from it.
"""

from __future__ import annotations

import asyncio
import keyword
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome, Score
from headrace_core.types.likelihood import Likelihood

from ..protocol import Need, Reward, Sample
from ..user_code.notes import notes_of
from .formula import FUNCTIONS, Formula, NotComputable
from .spec import AnyGrader, GraderSpec, Truth

MAX_GRADERS = 32


def _by_name(graders: Any) -> Any:
    """A map from a map, from a list (by the graders' names), or from one grader (as OpenAI's client types it)."""
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
    """OpenAI's fields. A list of graders is taken too; the description that comes back has a map."""

    type: Literal["multi"]
    graders: Annotated[dict[str, AnyGrader], BeforeValidator(_by_name), Field(min_length=1, max_length=MAX_GRADERS)]
    """By the names that the formula uses."""
    calculate_output: str
    """See `formula`."""

    @field_validator("graders")
    @classmethod
    def _can_be_named(cls, graders: dict[str, GraderSpec]) -> dict[str, GraderSpec]:
        for name in graders:
            if not name.isidentifier() or keyword.iskeyword(name) or name in FUNCTIONS:
                raise ValueError(f"a formula cannot name the grader {name!r}; use letters, digits and '_'")
        return graders

    @field_validator("calculate_output")
    @classmethod
    def _computes(cls, source: str, told: ValidationInfo) -> str:
        if "graders" in told.data:  # else they are the fault that is told
            Formula.parse(source, told.data["graders"])
        return source

    def needs(self) -> frozenset[Need]:
        """What any of the graders needs."""
        return frozenset().union(*(grader.needs() for grader in self.graders.values()))

    def truths(self) -> dict[str, Truth]:
        """What the graders know, each of itself alone."""
        return {
            f"{name}.{truth}": known.within(name, grader.high_from())
            for name, grader in self.graders.items()
            for truth, known in grader.truths().items()
        }

    def opinions(self) -> dict[str, float]:
        """Of every grader."""
        return {name: grader.high_from() for name, grader in self.graders.items()}


class Multi:
    """Starts, asks and closes its graders together."""

    def __init__(self, spec: MultiSpec, graders: Mapping[str, Reward]) -> None:
        self._graders = dict(graders)
        self._formula = Formula.parse(spec.calculate_output, spec.graders)

    async def start(self) -> None:
        """Start every grader; raises `InvalidRequest` that names the one that cannot, after closing the others."""
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
        """Close every grader, also where another one's end fails; the first error is raised."""
        for fault in await asyncio.gather(*(g.close() for g in self._graders.values()), return_exceptions=True):
            if fault is not None:
                raise fault

    def _combined(self, outcomes: Mapping[str, Outcome]) -> Outcome:
        values, components, lacking = dict[str, float](), dict[str, float](), list[str]()
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
                    lacking.append(f"grader '{name}': {outcome.sample_fault}")
        try:
            result = self._formula.value(values)
        except NotComputable as fault:
            return Failure("invalid_value", str(fault))
        if result is None:
            return NotApplicable()
        through = [held.within(*self._formula.slope(values, name)) for name, held in likelihoods.items()]
        lacks = "; ".join(lacking)
        return Score(result, values | components, lacks, notes_of(notes), next(iter(through), None))


async def _start(name: str, grader: Reward) -> None:
    try:
        await grader.start()
    except InvalidRequest as fault:
        param = f"grader.graders.{name}{(fault.param or '').removeprefix('grader')}"
        raise type(fault)(f"grader '{name}': {fault.message}", param=param, code=fault.code) from None
