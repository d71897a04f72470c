"""The settings of one job, as a user writes them under `method.reinforcement.hyperparameters`.

OpenAI's names keep their meaning ("auto" takes Headrace's default); Headrace's own names stand beside them. Every
setting is read somewhere outside this file and documented in docs/settings.md; tests check both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ..errors import InvalidRequest
from ..types.staleness import Late, Limits
from .algorithm_presets import ALGORITHMS, algorithm_preset
from .exact_model import ExactModel

BASE_LEARNING_RATE = 1e-5
"""The learning rate that learning_rate_multiplier scales."""

WHOLE_DISTRIBUTION: dict[str, tuple[float, ...]] = {"top_p": (1,), "top_k": (0, -1), "min_p": (0,)}
"""Parameters that truncate the sampling distribution, each with its values that truncate nothing: only those are
accepted, because training needs the whole distribution (decision 0028)."""

WholeNumber = Annotated[int, Field(le=10**9)]

LossMean = Literal["token", "sequence", "constant"]
KlEstimator = Literal["k1", "k2", "k3", "k1+", "k3+"]
OptimizerName = Literal["adamw", "galore", "fira", "dct_adamw"]
Proximal = Literal["recompute", "interpolate", "behaviour"]
Importance = Literal["truncate", "mask", "second_moment", "none"]
ImportanceLevel = Literal["token", "sequence", "geometric"]

MAX_FLOAT = 1e9
"""Upper limit of settings that have no effect where they are large. Larger values would take what is computed from them
out of the range of float32."""

MIN_TEMPERATURE = 0.01
"""Logits divided by less are no numbers any more, or leave the range of float32."""
MIN_CACHE_GIB = 1 / 1024
"""Less holds no completion. vLLM sizes its cache by itself where it is told a size of 0 bytes."""


def _with_auto(schema: dict[str, Any]) -> None:
    """Adds to the JSON schema what `_auto_means_default` accepts: "auto" for each field, and OpenAI's other names."""
    for name, field in schema["properties"].items():
        described = {k: field.pop(k) for k in ("title", "description", "default") if k in field}
        schema["properties"][name] = {"anyOf": [*field.pop("anyOf", [field]), {"const": "auto"}]} | described
    effort = {"const": "default", "description": "There are no levels of it here: max_tokens bounds it."}
    schema["properties"]["reasoning_effort"] = effort
    for name, values in WHOLE_DISTRIBUTION.items():
        schema["properties"][name] = {"enum": list(values), "description": "Training samples the whole distribution."}


class Hyperparameters(ExactModel):
    """A job's hyperparameters, checked one by one and together.

    An unknown name is an error, so that a typo is not silently ignored.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, json_schema_extra=_with_auto)

    # what is trained, and how long
    algorithm: str = Field("grpo", description="Preset of advantages and policy loss.")
    batch_size: int = Field(16, ge=1, le=4096, description="Groups a step.")
    group_size: int = Field(8, ge=1, le=256, description="Completions sampled for each prompt.")
    compute_multiplier: float | None = Field(
        None, gt=0, le=10, description="Factor on group_size: more completions of each prompt explore more."
    )
    n_steps: WholeNumber | None = Field(None, ge=1, description="Steps to train; or set n_epochs.")
    n_epochs: int | None = Field(None, ge=1, le=50, description="Passes over the training file; or set n_steps.")
    learning_rate: float | None = Field(None, gt=0, le=1, description="Peak learning rate of the policy.")
    learning_rate_multiplier: float | None = Field(
        None, gt=0, le=1e5, description="Factor on the default learning rate; or set learning_rate."
    )
    warmup_steps: WholeNumber = Field(0, ge=0, description="Steps of linear learning-rate warm-up.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay, of matrices only.")
    max_grad_norm: float = Field(
        1.0, gt=0, le=MAX_FLOAT, description="Gradient norm above which gradients are scaled down."
    )
    minibatches: int = Field(
        1, ge=1, le=64, description="Optimizer updates a step; the clip around the proximal policy acts only above 1."
    )
    token_budget: WholeNumber = Field(8192, ge=64, description="Maximum padded tokens of a forward and backward pass.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seeds prompt order, sampling and training.")

    # the policy loss
    clip_low: float = Field(0.2, gt=0, le=1, description="Lower clip: u ≥ 1 − clip_low, u = π_θ/π_prox.")
    clip_high: float = Field(0.2, gt=0, le=MAX_FLOAT, description="Upper clip: u ≤ 1 + clip_high.")
    loss_mean: LossMean = Field(
        "token",
        description="Mean with the same weight for every token (token) or for every completion (sequence), or the sum "
        "of tokens divided by max_tokens (constant).",
    )
    advantage_clip: float | None = Field(
        None, gt=0, le=MAX_FLOAT, description="Advantages are clamped to ± this, before the divergence is subtracted."
    )
    second_moment: float = Field(
        0.04,
        gt=0,
        le=MAX_FLOAT,
        description="With importance second_moment: bound of the mean squared log π_prox/π_behaviour over the tokens "
        "on which a trust region acts.",
    )
    filter_groups: bool = Field(
        False, description="Groups whose rewards are all equal are filtered, and others take their place in the step."
    )
    filter_limit: WholeNumber = Field(
        8, ge=1, description="Batches filtered for one step before groups of equal rewards are used after all."
    )

    # reference policy and critic
    kl_coefficient: float = Field(0.0, ge=0, le=MAX_FLOAT, description="Weight of the divergence from the base model.")
    kl_estimator: KlEstimator = Field(
        "k1",
        description="Estimator of the divergence of one token: k1 in the reward; in the loss k2, k1+ or k3+ (k1's or "
        "k3's value, k2's gradient: KL(policy ‖ base)), or k3, whose gradient is that of KL(base ‖ policy).",
    )
    kl_in: Literal["reward", "loss"] = Field(
        "reward",
        description="Where the divergence is applied: in the reward, after advantages are normalised, or in the loss.",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of a later token's reward.")
    gae_lambda: float = Field(1.0, ge=0, le=1, description="λ of generalised advantage estimation, with a critic.")
    truncation: Literal["bootstrap", "end"] = Field(
        "end",
        description="With a critic, if max_tokens cut a completion off: its return ends with its reward, like any "
        "other's (end), or the critic's value of what would come next is added (bootstrap).",
    )
    value_clip: float = Field(
        0.2, gt=0, le=MAX_FLOAT, description="Largest change of a value that still lowers the critic's loss."
    )
    critic_learning_rate: float | None = Field(
        None, gt=0, le=1, description="Peak learning rate of the critic; that of the policy by default."
    )
    critic_warmup_steps: WholeNumber = Field(0, ge=0, description="First steps, in which only the critic is trained.")

    # memory
    optimizer: OptimizerName = Field("adamw", description="Optimizer of the policy and the critic.")
    optimizer_rank: WholeNumber = Field(64, ge=1, description="Rank of the low-rank optimizers.")
    optimizer_interval: WholeNumber | None = Field(
        None,
        ge=1,
        description="Updates after which a low-rank optimizer changes its subspace: 200 by default, 1 for dct_adamw.",
    )
    optimizer_scale: float | None = Field(
        None,
        gt=0,
        le=MAX_FLOAT,
        description="Factor on a low-rank update, compared with a full one: 0.25 by default, 1 for dct_adamw.",
    )
    lora_rank: int | None = Field(None, ge=1, le=512, description="Train adapters of this rank instead of all weights.")
    lora_alpha: float = Field(16.0, gt=0, le=MAX_FLOAT, description="Adapters are scaled by lora_alpha / lora_rank.")
    gradient_checkpointing: bool = Field(
        False, description="Store activations only between layers and recompute the rest: less memory, more time."
    )
    learner_precision: Literal["bfloat16", "float32"] | None = Field(
        None,
        description="Precision in which the learner computes: bfloat16 on a GPU, float32 on a CPU by default. Weights "
        "that are trained, their gradients, the optimizer's state and log-probabilities are float32 in both.",
    )
    learner_ranks: int = Field(1, ge=1, le=1024, description="Processes the learner is sharded over, one device each.")

    # staleness
    max_staleness: WholeNumber = Field(
        4, ge=0, description="Maximum age, in policy versions, of a token that contributes to a gradient."
    )
    late: Late = Field(
        "mask", description="What happens to tokens beyond max_staleness: mask, drop the group, or wait for stragglers."
    )
    proximal: Proximal = Field(
        "recompute",
        description="Policy at the centre of the clip: computed before the update, interpolated between behaviour and "
        "current policy, or the behaviour policy itself (plain PPO).",
    )
    importance: Importance = Field(
        "truncate",
        description="Staleness weight π_prox/π_behaviour: capped, zero outside [1/cap, cap], zero until its second "
        "moment is below a bound, or left out.",
    )
    importance_level: ImportanceLevel = Field(
        "token", description="Ratio in the weight: of a token, of the completion, or the completion's geometric mean."
    )
    importance_cap: float = Field(
        5.0, ge=1, le=MAX_FLOAT, description="Cap of the staleness weight π_prox/π_behaviour."
    )
    update_mode: Literal["keep_kv", "recompute", "drain"] = Field(
        "keep_kv",
        description="At a weight update, requests in flight keep their KV cache, recompute it, or finish first.",
    )

    max_mismatch: float = Field(
        0.01,
        gt=0,
        le=MAX_FLOAT,
        description="Divergence in nats a token between engine and learner, for the same tokens at the same weights, "
        "above which the job fails.",
    )

    # generation
    engine: Literal["vllm", "transformers"] = Field("vllm", description="Engine that generates completions.")
    rollout_workers: int = Field(1, ge=1, le=256, description="Rollout workers, each with an engine of its own.")
    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature.")
    max_tokens: WholeNumber = Field(256, ge=1, description="Maximum tokens of a completion.")
    max_context: WholeNumber = Field(2048, ge=8, description="Maximum tokens of prompt and completion together.")
    max_running: int = Field(128, ge=1, le=4096, description="Maximum completions that one worker decodes at a time.")
    kv_cache_gib: float = Field(1.0, gt=0, le=MAX_FLOAT, description="Memory of one engine's KV cache, in GiB.")
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

    @field_validator("temperature", "kv_cache_gib")
    @classmethod
    def _not_nearly_nothing(cls, value: float, info: ValidationInfo) -> float:
        least = MIN_TEMPERATURE if info.field_name == "temperature" else MIN_CACHE_GIB
        if value < least:
            raise ValueError(f"{value:g} is too near to 0: give at least {least:g}")
        return value

    @field_validator("algorithm")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            algorithm_preset(name)
        except InvalidRequest as error:
            raise ValueError(error.message) from error
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Hyperparameters:
        if self.n_steps is not None and self.n_epochs is not None:
            raise ValueError("give n_steps or n_epochs, not both")
        if self.learning_rate is not None and self.learning_rate_multiplier is not None:
            raise ValueError("give learning_rate or learning_rate_multiplier (of the default), not both")
        if self.max_tokens >= self.max_context:
            raise ValueError("max_tokens must leave room for a prompt: raise max_context or lower max_tokens")
        if self.minibatches > self.batch_size:
            raise ValueError("minibatches cannot exceed batch_size: a minibatch holds whole groups")
        self._check_learning()
        return self

    def _check_learning(self) -> None:
        """Refuses combinations that would silently train nothing, or something other than what they say."""
        if ALGORITHMS[self.algorithm].compares_within_group and self.group_size < 2:
            raise ValueError(f"{self.algorithm} compares the completions of a group: group_size must be at least 2")
        if self.filter_groups and self.group_size < 2:
            raise ValueError("filter_groups compares the rewards of a group: group_size must be at least 2")
        if self.kl_coefficient > 0 and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "k1 in the loss has an expected gradient of zero: set kl_in to reward, or kl_estimator to k3+ or k2"
            )
        if self.kl_coefficient > 0 and self.kl_in == "reward" and self.kl_estimator != "k1":
            raise ValueError(
                f"{self.kl_estimator} in the reward has the gradient of another quantity than the divergence, and can "
                "lead away from the base model: set kl_in to loss, or kl_estimator to k1"
            )
        if self.importance == "second_moment" and self.proximal != "recompute":
            raise ValueError("importance second_moment looks at the whole batch first: it needs proximal recompute")
        if self.learner_ranks > 1 and self.optimizer != "adamw":
            raise ValueError(f"{self.optimizer} needs whole matrices: it cannot be sharded over learner_ranks")
        if self.lora_rank is not None and self.optimizer != "adamw":
            raise ValueError(f"adapters are low-rank already: {self.optimizer} would do nothing for them")

    @property
    def peak_learning_rate(self) -> float:
        """Peak learning rate of the policy's optimizer."""
        return self.learning_rate or BASE_LEARNING_RATE * (self.learning_rate_multiplier or 1.0)

    @property
    def subspace_interval(self) -> int:
        """Updates from one choice of a low-rank optimizer's subspace to the next."""
        return self.optimizer_interval or (1 if self.optimizer == "dct_adamw" else 200)

    @property
    def subspace_scale(self) -> float:
        """Factor by which a low-rank optimizer scales the update within its subspace."""
        return self.optimizer_scale or (1.0 if self.optimizer == "dct_adamw" else 0.25)

    @property
    def explored_group_size(self) -> int:
        """Completions sampled for each prompt: group_size × compute_multiplier, at least 1."""
        return max(1, round(self.group_size * (self.compute_multiplier or 1.0)))

    def steps(self, rows: int) -> int:
        """Steps of a job over a training file of `rows` rows; the last one of n_epochs may begin another pass."""
        if self.n_steps is not None:
            return self.n_steps
        return -(-(self.n_epochs or 1) * rows // self.batch_size)

    def limits(self, rows: int) -> Limits:
        """The limits that the ledger holds the flow of groups to."""
        return Limits(self.batch_size, self.max_staleness, self.steps(rows) * self.batch_size)

    def evaluation_interval(self, steps: int) -> int:
        """Steps between evaluations: a tenth of the job by default."""
        return self.eval_interval or max(1, steps // 10)

    def checkpoint_every(self, steps: int) -> int:
        """Steps between checkpoints: a fifth of the job by default."""
        return self.checkpoint_interval or max(1, steps // 5)
