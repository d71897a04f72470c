"""A job's settings of what its learner computes: length, policy loss, reference and critic, memory, staleness."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ..errors import InvalidRequest
from ..types.staleness import Late, Limits
from .algorithm_presets import ALGORITHMS, algorithm_preset
from .bounds import MAX_FLOAT, WholeNumber
from .exact_model import ExactModel

BASE_LEARNING_RATE = 1e-5
"""The learning rate that learning_rate_multiplier scales."""

LossMean = Literal["token", "sequence", "constant"]
KlEstimator = Literal["k1", "k2", "k3", "k1+", "k3+"]
OptimizerName = Literal["adamw", "galore", "fira", "dct_adamw"]
Proximal = Literal["recompute", "interpolate", "behaviour"]
Importance = Literal["truncate", "mask", "second_moment", "none"]
ImportanceLevel = Literal["token", "sequence", "geometric"]


class LearningSettings(ExactModel):
    """The part of a job's `Hyperparameters` that the learner reads, with the checks of it."""

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

    @field_validator("algorithm")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            algorithm_preset(name)
        except InvalidRequest as error:
            raise ValueError(error.message) from error
        return name

    @model_validator(mode="after")
    def _one_way_each(self) -> Self:
        """Refuses two ways to say the same, and minibatches without a group."""
        if self.n_steps is not None and self.n_epochs is not None:
            raise ValueError("give n_steps or n_epochs, not both")
        if self.learning_rate is not None and self.learning_rate_multiplier is not None:
            raise ValueError("give learning_rate or learning_rate_multiplier (of the default), not both")
        if self.minibatches > self.batch_size:
            raise ValueError("minibatches cannot exceed batch_size: a minibatch holds whole groups")
        return self

    @model_validator(mode="after")
    def _trains_what_it_says(self) -> Self:
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
        return self

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
