"""The settings of one job, as a user writes them under `method.reinforcement.hyperparameters`.

OpenAI's names keep their meaning ("auto" takes Headrace's default); Headrace's own names stand beside them. Every
setting is read somewhere outside this file and documented in docs/settings.md; tests check both.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from .algorithm_presets import ALGORITHMS
from .bounds import WholeNumber
from .generation_settings import GenerationSettings
from .learning_settings import LearningSettings

WHOLE_DISTRIBUTION: dict[str, tuple[float, ...]] = {"top_p": (1,), "top_k": (0, -1), "min_p": (0,)}
"""Parameters that truncate the sampling distribution, each with its values that truncate nothing: only those are
accepted, because training needs the whole distribution (decision 0028)."""


def _with_auto(schema: dict[str, Any]) -> None:
    """Adds to the JSON schema what `_auto_means_default` accepts: "auto" for each field, and OpenAI's other names."""
    for name, field in schema["properties"].items():
        described = {k: field.pop(k) for k in ("title", "description", "default") if k in field}
        schema["properties"][name] = {"anyOf": [*field.pop("anyOf", [field]), {"const": "auto"}]} | described
    effort = {"const": "default", "description": "There are no levels of it here: max_tokens bounds it."}
    schema["properties"]["reasoning_effort"] = effort
    for name, values in WHOLE_DISTRIBUTION.items():
        schema["properties"][name] = {"enum": list(values), "description": "Training samples the whole distribution."}


class Hyperparameters(GenerationSettings, LearningSettings):
    """A job's hyperparameters, checked one by one and together.

    An unknown name is an error, so that a typo is not silently ignored.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, json_schema_extra=_with_auto)

    # rewards, and what ends or pauses a job
    reward_attempts: int = Field(2, ge=1, le=10, description="Maximum attempts to score a completion.")
    reward_failure: Literal["fail_group", "leave_out"] = Field(
        "fail_group",
        description="A completion whose reward failed ends its group as reward_failed, or is left out of the group.",
    )
    max_reward_failures: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of the groups that end as reward_failed, or of the completions left out, above which the "
        "job fails.",
    )
    max_generation_failures: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of the groups that end as generation_failed, because no engine can serve their row, above "
        "which the job fails.",
    )
    max_steps_without_gradient: WholeNumber = Field(
        10,
        ge=0,
        description="Steps in a row without any reward, or first steps of a job with equal rewards in every group, "
        "after which it pauses, because the policy does not change. 0: it never pauses for that.",
    )
    reward_recheck: float = Field(
        0.02, ge=0, le=1, description="Share of the groups that are scored again, to measure whether scores repeat."
    )

    # evaluation, checkpoints, and recorded completions
    eval_interval: WholeNumber | None = Field(
        None,
        ge=1,
        description="Steps between evaluations on the validation file; a tenth of the job by default. "
        "docs/staleness.md says what one costs, and how to lower that.",
    )
    eval_samples: WholeNumber | None = Field(
        None,
        ge=1,
        description="Validation rows evaluated; all by default, which costs a job with one rollout worker the time in "
        "which it would have sampled as many completions.",
    )
    checkpoint_interval: WholeNumber | None = Field(None, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: WholeNumber = Field(
        5,
        ge=2,
        description="Newest checkpoints that stay on the disk, with that of the best evaluation (without any, of the "
        "best training reward); older ones are removed.",
    )
    snapshot_every: WholeNumber = Field(
        1, ge=0, description="Steps between snapshots of the learner's state in memory; 0 takes none."
    )
    keep_rollouts: int = Field(
        4, ge=0, le=64, description="Number of groups of each step whose completions are recorded, chosen by id."
    )
    keep_rollouts_mib: int = Field(
        32, ge=1, le=4096, description="MiB of recorded completions in Redis, of all steps; the oldest are removed."
    )

    @model_validator(mode="before")
    @classmethod
    def _auto_means_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {k: v for k, v in data.items() if v != "auto"}
        if given.pop("reasoning_effort", "default") != "default":
            raise ValueError("reasoning_effort: there are no levels of it here; bound completions with max_tokens")
        for name, accepted in WHOLE_DISTRIBUTION.items():
            if given.pop(name, accepted[0]) not in accepted:
                raise ValueError(
                    f"{name}: training samples from the whole distribution, as a gradient from a part of it "
                    f"would be off by the mass of the rest; leave {name} out, and lower temperature instead"
                )
        preset = ALGORITHMS.get(str(given.get("algorithm", cls.model_fields["algorithm"].default)))
        if preset is None:
            return given  # `_known` refuses the name
        merged = {**preset.defaults, **given}
        if "minibatches" not in given and isinstance(groups := merged.get("batch_size"), int) and groups > 0:
            # The user did not set it: the default must not refuse a batch_size below it.
            merged["minibatches"] = min(groups, merged.get("minibatches", cls.model_fields["minibatches"].default))
        return merged

    def evaluation_interval(self, steps: int) -> int:
        """Steps between evaluations: a tenth of the job by default."""
        return self.eval_interval or max(1, steps // 10)

    def checkpoint_every(self, steps: int) -> int:
        """Steps between checkpoints: a fifth of the job by default."""
        return self.checkpoint_interval or max(1, steps // 5)
