"""From a grader's description (a JSON object whose `type` says which) to a `Reward`.

Adding a type is one line in `GRADERS`: its spec, and what makes a reward of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace_core.errors import InvalidRequest
from headrace_core.reward_rules import RewardRules
from headrace_rewards import maths
from headrace_rewards.audited import Audited, AuditedSpec
from headrace_rewards.calibrated import Calibrated, CalibratedSpec
from headrace_rewards.debias import Debias, DebiasSpec
from headrace_rewards.endpoint import Endpoint, EndpointSpec
from headrace_rewards.functions import FunctionReward, FunctionSpec
from headrace_rewards.label_model import LabelModel, LabelModelSpec
from headrace_rewards.multi import Multi, MultiSpec
from headrace_rewards.noisy import Noisy, NoisySpec
from headrace_rewards.protocol import Reward
from headrace_rewards.python_source import PythonReward, PythonSpec
from headrace_rewards.reasoning_pattern import ReasoningPattern, ReasoningPatternSpec
from headrace_rewards.registered import Registered, RegisteredSpec
from headrace_rewards.score_model import ScoreModel, ScoreModelSpec
from headrace_rewards.specs import GraderSpec, validate
from headrace_rewards.string_check import StringCheck, StringCheckSpec
from headrace_rewards.tasks import environment, verifier
from headrace_rewards.text_similarity import TextSimilarity, TextSimilaritySpec
from headrace_rewards.verifier_free import entropy, jepo, latro, majority_vote, rlpr, self_certainty, verifree


@dataclass(frozen=True, slots=True)
class Grader:
    """One type of grader. `make` takes an instance of `spec`, and the builder that makes it."""

    spec: type[GraderSpec]
    make: Callable[[Any, Builder], Reward]


@dataclass(frozen=True, slots=True)
class Builder:
    """Makes rewards under the operator's rules."""

    rules: RewardRules

    def build(self, spec: GraderSpec) -> Reward:
        """A reward that is not started yet; a grader of graders calls it for those it holds."""
        return GRADERS[spec.type].make(spec, self)


GRADERS: dict[str, Grader] = {
    "string_check": Grader(StringCheckSpec, lambda spec, _: StringCheck(spec)),
    "text_similarity": Grader(TextSimilaritySpec, lambda spec, _: TextSimilarity(spec)),
    "multi": Grader(
        MultiSpec, lambda spec, builder: Multi(spec, {name: builder.build(g) for name, g in spec.graders.items()})
    ),
    "python": Grader(PythonSpec, lambda spec, builder: PythonReward(spec, builder.rules)),
    "function": Grader(FunctionSpec, lambda spec, builder: FunctionReward(spec, builder.rules)),
    "registered": Grader(RegisteredSpec, lambda spec, builder: Registered(spec, builder.rules)),
    "endpoint": Grader(EndpointSpec, lambda spec, builder: Endpoint(spec, builder.rules)),
    "score_model": Grader(ScoreModelSpec, lambda spec, builder: ScoreModel(spec, builder.rules)),
    "label_model": Grader(LabelModelSpec, lambda spec, builder: LabelModel(spec, builder.rules)),
    "math_verify": Grader(maths.MathVerifySpec, lambda spec, builder: maths.make(spec, builder.rules)),
    "reasoning_gym": Grader(verifier.ReasoningGymSpec, lambda spec, builder: verifier.make(spec, builder.rules)),
    "verifiers": Grader(environment.EnvironmentSpec, lambda spec, builder: environment.make(spec, builder.rules)),
    "noisy": Grader(NoisySpec, lambda spec, builder: Noisy(spec, builder.build(spec.grader))),
    "debias": Grader(DebiasSpec, lambda spec, builder: Debias(spec, builder.build(spec.grader))),
    "reasoning_pattern": Grader(ReasoningPatternSpec, lambda spec, _: ReasoningPattern(spec)),
    "calibrated": Grader(CalibratedSpec, lambda spec, builder: Calibrated(spec, builder.build(spec.grader))),
    "audited": Grader(
        AuditedSpec, lambda spec, builder: Audited(spec, builder.build(spec.grader), builder.build(spec.audit))
    ),
    "verifree": Grader(verifree.VeriFreeSpec, verifree.make),
    "jepo": Grader(jepo.JepoSpec, jepo.make),
    "latro": Grader(latro.LatroSpec, latro.make),
    "rlpr": Grader(rlpr.RlprSpec, rlpr.make),
    "majority_vote": Grader(majority_vote.MajorityVoteSpec, majority_vote.make),
    "self_certainty": Grader(self_certainty.SelfCertaintySpec, self_certainty.make),
    "entropy": Grader(entropy.EntropySpec, entropy.make),
}


_IN_PROCESSES = ("python", "function", "registered", "math_verify", "reasoning_gym", "verifiers")
"""Types whose `workers` are processes."""


def build(grader: Any, rules: RewardRules | None = None) -> Reward:
    """A reward that is not started yet; raises `InvalidRequest` as `validate` does."""
    spec, rules = validate(grader), rules or RewardRules()
    require_processes(spec, rules)
    return Builder(rules).build(spec)


def require_processes(spec: GraderSpec, rules: RewardRules) -> None:
    """Raises `InvalidRequest` where a grader, with those it holds, asks for more processes than the operator allows."""
    asked = 0
    open_values: list[Any] = [spec.model_dump()]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            asked += value.get("workers", 0) if value.get("type") in _IN_PROCESSES else 0
            open_values += value.values()
        elif isinstance(value, list):
            open_values += value
    if asked > rules.processes:
        raise InvalidRequest(
            f"its parts ask for {asked} processes together; the operator allows "
            f"{rules.processes} (HEADRACE_REWARD_PROCESSES)",
            param="grader",
        )
