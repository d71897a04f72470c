"""The settings of one job, as a user writes them under `method.reinforcement.hyperparameters`.

OpenAI's own names keep their meaning ("auto" takes our default); ours stand beside them. Every setting is read
somewhere outside this file, and documented in docs/settings.md; tests hold both.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .algorithms import ALGORITHMS, algorithm_facts
from .errors import InvalidRequest
from .staleness import Late, Limits

_BASE_LEARNING_RATE = 1e-5


class Hyperparameters(BaseModel):
    """Cross-checks stand beside the fields; an unknown name is an error, so that a typo is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # what is trained, and how long
    algorithm: str = Field("grpo", description="Preset of advantages and policy loss.")
    batch_size: int = Field(16, ge=1, le=4096, description="Groups a step.")
    group_size: int = Field(8, ge=1, le=256, description="Completions sampled for each prompt.")
    n_steps: int | None = Field(None, ge=1, description="Steps to train; instead of n_epochs.")
    n_epochs: int | None = Field(None, ge=1, le=50, description="Passes over the training file.")
    learning_rate: float | None = Field(None, gt=0, le=1, description="Peak learning rate of AdamW.")
    learning_rate_multiplier: float | None = Field(
        None, gt=0, description="Scales the default learning rate; instead of learning_rate."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear learning-rate warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm above which gradients are scaled down.")
    minibatches: int = Field(
        1, ge=1, le=64, description="Optimizer updates a step; above 1 the clip around the proximal policy is alive."
    )
    token_budget: int = Field(8192, ge=64, description="Padded tokens of one forward and backward pass.")
    clip_low: float = Field(0.2, gt=0, description="Lower clip: u ≥ 1 − clip_low, u = π_θ/π_prox.")
    clip_high: float = Field(0.2, gt=0, description="Upper clip: u ≤ 1 + clip_high.")
    importance_cap: float = Field(5.0, gt=0, description="Cap of the staleness weight π_prox/π_behaviour.")
    seed: int = Field(0, ge=0, description="Seeds prompt order, sampling and training.")

    # staleness
    max_staleness: int = Field(
        4, ge=0, description="Largest age of a token, in policy versions, that contributes to a gradient."
    )
    late: Late = Field(
        "mask", description="What happens to tokens beyond max_staleness: mask, drop the group, or wait for stragglers."
    )
    update_mode: Literal["keep_kv", "recompute", "drain"] = Field(
        "keep_kv",
        description="Requests in flight at a weight update keep their cache, have it recomputed, or finish first.",
    )

    # generation
    engine: Literal["vllm", "transformers"] = Field("vllm", description="What generates.")
    rollout_workers: int = Field(1, ge=1, le=256, description="Rollout workers, each with an engine of its own.")
    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling.")
    max_tokens: int = Field(256, ge=1, description="Longest completion.")
    max_context: int = Field(2048, ge=8, description="Longest prompt and completion together.")
    max_running: int = Field(128, ge=1, le=4096, description="Completions decoded at once by one worker.")
    kv_cache_gib: float = Field(1.0, gt=0, description="Memory of one engine's KV cache, in GiB.")
    reward_attempts: int = Field(
        2, ge=1, le=10, description="Tries of a group whose reward fails before it ends as reward_failed."
    )
    max_reward_failures: float = Field(
        0.2, gt=0, le=1, description="Share of ended groups with a failed reward above which the job fails."
    )

    # evaluation and checkpoints
    eval_interval: int | None = Field(None, ge=1, description="Steps between evaluations on the validation file.")
    eval_samples: int | None = Field(None, ge=1, description="Validation rows evaluated; all by default.")
    checkpoint_interval: int | None = Field(None, ge=1, description="Steps between checkpoints.")

    @model_validator(mode="before")
    @classmethod
    def _auto_means_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {k: v for k, v in data.items() if v != "auto"}
        facts = ALGORITHMS.get(str(given.get("algorithm", cls.model_fields["algorithm"].default)))
        return given if facts is None else {**facts.defaults, **given}

    @field_validator("algorithm")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            algorithm_facts(name)
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
        return self

    @property
    def peak_learning_rate(self) -> float:
        """AdamW's peak learning rate."""
        return self.learning_rate or _BASE_LEARNING_RATE * (self.learning_rate_multiplier or 1.0)

    def steps(self, rows: int) -> int:
        """Steps of a job over a training file of `rows` rows."""
        if self.n_steps is not None:
            return self.n_steps
        return max(1, (self.n_epochs or 1) * rows // self.batch_size)

    def limits(self, rows: int) -> Limits:
        """What bounds the flow of groups."""
        return Limits(self.batch_size, self.max_staleness, self.steps(rows) * self.batch_size)

    def evaluation_interval(self, steps: int) -> int:
        """Steps between evaluations: a tenth of the job by default."""
        return self.eval_interval or max(1, steps // 10)

    def checkpoint_every(self, steps: int) -> int:
        """Steps between checkpoints: a fifth of the job by default."""
        return self.checkpoint_interval or max(1, steps // 5)
