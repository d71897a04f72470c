"""Builds a `Reward` from a grader's description, a JSON object with a `type`.

A new type is one line in `GRADERS`: its spec, and a function that makes a reward from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest

from .graders import math_verify, reasoning_gym, verifiers_env
from .graders.audited import AuditedReward, AuditedSpec
from .graders.calibrated import Calibrated, CalibratedSpec
from .graders.debias import Debias, DebiasSpec
from .graders.endpoint import Endpoint, EndpointSpec
from .graders.entry_point import EntryPointReward, EntryPointSpec
from .graders.function import FunctionReward, FunctionSpec
from .graders.label_model import LabelModel, LabelModelSpec
from .graders.multi import Multi, MultiSpec
from .graders.noisy import Noisy, NoisySpec
from .graders.python_source import PythonReward, PythonSpec
from .graders.reasoning_pattern import ReasoningPattern, ReasoningPatternSpec
from .graders.score_model import ScoreModel, ScoreModelSpec
from .graders.spec import GraderSpec, validate
from .graders.string_check import StringCheck, StringCheckSpec
from .graders.text_similarity import TextSimilarity, TextSimilaritySpec
from .graders.verifier_free import entropy, jepo, latro, majority_vote, rlpr, self_certainty, verifree
from .protocol import Reward


@dataclass(frozen=True, slots=True)
class Grader:
    """One type of grader. `make` takes an instance of `spec`, and the builder for the graders nested in it."""

    spec: type[GraderSpec]
    make: Callable[[Any, Builder], Reward]


@dataclass(frozen=True, slots=True)
class Builder:
    """Makes rewards within the operator's permissions."""

    rules: RewardPermissions

    def build(self, spec: GraderSpec) -> Reward:
        """A reward that is not started yet. A grader of graders calls this for the graders nested in it."""
        return GRADERS[spec.type].make(spec, self)


GRADERS: dict[str, Grader] = {
    "string_check": Grader(StringCheckSpec, lambda spec, _: StringCheck(spec)),
    "text_similarity": Grader(TextSimilaritySpec, lambda spec, _: TextSimilarity(spec)),
    "multi": Grader(
        MultiSpec, lambda spec, builder: Multi(spec, {name: builder.build(g) for name, g in spec.graders.items()})
    ),
    "python": Grader(PythonSpec, lambda spec, builder: PythonReward(spec, builder.rules)),
    "function": Grader(FunctionSpec, lambda spec, builder: FunctionReward(spec, builder.rules)),
    "registered": Grader(EntryPointSpec, lambda spec, builder: EntryPointReward(spec, builder.rules)),
    "endpoint": Grader(EndpointSpec, lambda spec, builder: Endpoint(spec, builder.rules)),
    "score_model": Grader(ScoreModelSpec, lambda spec, builder: ScoreModel(spec, builder.rules)),
    "label_model": Grader(LabelModelSpec, lambda spec, builder: LabelModel(spec, builder.rules)),
    "math_verify": Grader(math_verify.MathVerifySpec, lambda spec, builder: math_verify.make(spec, builder.rules)),
    "reasoning_gym": Grader(
        reasoning_gym.ReasoningGymSpec, lambda spec, builder: reasoning_gym.make(spec, builder.rules)
    ),
    "verifiers": Grader(verifiers_env.VerifiersEnvSpec, lambda spec, builder: verifiers_env.make(spec, builder.rules)),
    "noisy": Grader(NoisySpec, lambda spec, builder: Noisy(spec, builder.build(spec.grader))),
    "debias": Grader(DebiasSpec, lambda spec, builder: Debias(spec, builder.build(spec.grader))),
    "reasoning_pattern": Grader(ReasoningPatternSpec, lambda spec, _: ReasoningPattern(spec)),
    "calibrated": Grader(CalibratedSpec, lambda spec, builder: Calibrated(spec, builder.build(spec.grader))),
    "audited": Grader(
        AuditedSpec, lambda spec, builder: AuditedReward(spec, builder.build(spec.grader), builder.build(spec.audit))
    ),
    "verifree": Grader(verifree.VeriFreeSpec, verifree.make),
    "jepo": Grader(jepo.JepoSpec, jepo.make),
    "latro": Grader(latro.LatroSpec, latro.make),
    "rlpr": Grader(rlpr.RlprSpec, rlpr.make),
    "majority_vote": Grader(majority_vote.MajorityVoteSpec, majority_vote.make),
    "self_certainty": Grader(self_certainty.SelfCertaintySpec, self_certainty.make),
    "entropy": Grader(entropy.EntropySpec, entropy.make),
}


_PROCESS_TYPES = ("python", "function", "registered", "math_verify", "reasoning_gym", "verifiers")
"""Types whose `workers` field is a number of processes."""


def build(grader: Any, rules: RewardPermissions | None = None) -> Reward:
    """A reward that is not started yet. Raises `InvalidRequest` like `validate` and `require_processes`."""
    spec, rules = validate(grader), rules or RewardPermissions()
    require_processes(spec, rules)
    return Builder(rules).build(spec)


def require_processes(spec: GraderSpec, rules: RewardPermissions) -> None:
    """Raises `InvalidRequest` if a grader and the graders nested in it need more processes than the operator allows."""
    processes = 0
    unvisited: list[Any] = [spec.model_dump()]
    while unvisited:
        value = unvisited.pop()
        if isinstance(value, dict):
            processes += value.get("workers", 0) if value.get("type") in _PROCESS_TYPES else 0
            unvisited += value.values()
        elif isinstance(value, list):
            unvisited += value
    if processes > rules.processes:
        raise InvalidRequest(
            f"its parts ask for {processes} processes together; the operator allows "
            f"{rules.processes} (HEADRACE_REWARD_PROCESSES)",
            param="grader",
        )
