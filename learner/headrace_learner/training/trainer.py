"""One training step: from groups to updated weights and figures. Torch only, no Redis; the clock measures durations.

    groups ─► recompute rewards whose likelihood is of an older policy (`reevaluation`)
           ─► table and minibatches ─► estimates: proximal, reference, values, by the weights before the step
                                           │
                                           ▼
                                       advantages
              ┌───────────── each minibatch ──┘
              ▼
           loss and backward of each micro-batch ─► clip the gradient ─► optimizer step;   the same for the critic

Invariants: the same groups in the same order, from the same state, give bit-identical weights; no token older than
max_staleness enters a loss; estimates are of the models before the first minibatch's update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Group

from ..algorithms.advantages import AdvantageInputs, Column
from ..algorithms.batch import MicroBatch, MiniBatch, StepBatch, Table, build_step_batch
from ..algorithms.importance_weights import StalenessWeights, staleness_weights
from ..algorithms.kl import kl_estimate
from ..algorithms.losses import Clip, LossTokens, LossValues, clipped_value
from ..algorithms.presets import Algorithm
from ..algorithms.token_selection import AgeCount, TrainableCompletion
from ..distributed.process_group import share
from ..models.critic import Critic
from ..models.policy import Policy
from ..optimizers import learning_rate
from ..reevaluation import reevaluated, reward_shift
from .forward_estimates import Estimates, Estimator
from .model_optimizer import ModelOptimizer
from .step_metrics import REWARD_SHIFT, StepFigures, StepLog


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step. N: rows of the step's table."""

    samples: tuple[tuple[TrainableCompletion, ...], ...]
    """The completions with a reward, by group; they have their rows of the columns [N], and the reward trained on."""
    advantages_N: npt.NDArray[np.float32]
    importance_N: npt.NDArray[np.float64]
    """Staleness weights; NaN where not computed."""
    counts: AgeCount
    measured: StepFigures
    loss: float
    """Mean of the minibatches' policy losses."""
    grad_norm: float
    """Norm of the policy's gradient before clipping; the largest of the minibatches."""
    learning_rate: float
    batch_seconds: float
    train_seconds: float


@dataclass(frozen=True, slots=True)
class _Step:
    """What the updates of one step have in common; on the training device."""

    table: Table
    estimates: Estimates
    advantages_N: Tensor
    returns_N: Tensor | None
    weights: StalenessWeights | None
    """Set if they depend on all tokens of the step together; None: each micro-batch computes its own."""
    first: slice
    """Rows of the first minibatch, which is computed before the policy's first update."""
    log: StepLog


class Trainer:
    """The policy, its critic and its reference (if needed), their optimizers, and the training step."""

    def __init__(self, policy: Policy, algorithm: Algorithm, settings: Hyperparameters) -> None:
        self.policy = policy
        self.ranks = policy.ranks
        self.critic = Critic(policy.folder, settings, self.ranks) if algorithm.critic else None
        self._algorithm = algorithm
        self._settings = settings
        self.optimizers = {"policy": ModelOptimizer(policy.model, settings)}
        """By the names that checkpoints store them under."""
        if self.critic is not None:
            self.optimizers["critic"] = ModelOptimizer(self.critic.net, settings)
        self._clip = Clip(settings.clip_low, settings.clip_high)
        self._estimate = Estimator(policy, self._reference(), self.critic, settings, self.ranks, self._count)
        self.computed_tokens = 0
        """Tokens of this rank's micro-batches, padding included, in all passes since the start. It grows within a step,
        so that a long step can be told from one that hangs."""

    def _reference(self) -> Callable[[MicroBatch], Tensor] | None:
        """Log-probabilities by the base model; None if there is no divergence term."""
        if not self._settings.kl_coefficient:
            return None
        base = self.policy.reference()
        return lambda micro: base(micro, self._settings.temperature)

    def _count(self, micro: MicroBatch) -> None:
        self.computed_tokens += micro.inputs_BT.numel()

    def apply_settings(self, max_staleness: int, peak_learning_rate: float) -> None:
        """Set the two settings that may change while a job runs, for the next steps."""
        changed = {"max_staleness": max_staleness, "learning_rate": peak_learning_rate}
        self._settings = self._settings.model_copy(update=changed)

    def step(self, groups: Sequence[Group], version: int) -> StepResult:
        """Update policy `version` on these groups. All ranks call it with the same groups.

        Raises `TrainingDiverged` if a gradient is not finite, `InvalidData` for a token without a log-probability.
        """
        began = time.monotonic()
        rewarded = reevaluated(groups, version, self._settings, self._estimate.logprobs)
        reevaluation_seconds = time.monotonic() - began
        batch = build_step_batch(rewarded, version, self._settings)
        rate = self._set_rates(version)
        batched = time.monotonic()
        step = self._prepare(batch)
        minibatches = [m for m in batch.minibatches if m.micro_batches]
        norms = [self._update(m, step, version) for m in minibatches]
        measured = step.log.measure(batch.counts)
        if (shift := reward_shift(groups, rewarded)) is not None:
            measured.extra[REWARD_SHIFT] = shift
        return StepResult(
            samples=batch.samples,
            advantages_N=step.advantages_N.float().cpu().numpy(),
            importance_N=step.log.importance_N,
            counts=batch.counts,
            measured=measured,
            loss=measured.loss / max(1, len(minibatches)),
            grad_norm=max(norms, default=0.0),
            learning_rate=rate,
            batch_seconds=batched - began - reevaluation_seconds,
            train_seconds=time.monotonic() - batched + reevaluation_seconds,
        )

    # ── before the updates ───────────────────────────────────────────────────────────────────────────────────────────

    def _set_rates(self, version: int) -> float:
        """Set the learning rates of policy and critic; returns the policy's."""
        s = self._settings
        rate = learning_rate(s, version)
        self.optimizers["policy"].set_rate(rate)
        if self.critic is not None:
            self.optimizers["critic"].set_rate(
                rate * (s.critic_learning_rate or s.peak_learning_rate) / s.peak_learning_rate
            )
        return rate

    def _prepare(self, batch: StepBatch) -> _Step:
        s, device = self._settings, self.policy.device
        table = batch.table.to(device)
        estimates = self._estimate(batch, table)
        values_N = estimates.values_N
        penalties_N, earlier_K = _penalties(batch, table.of_completions(estimates.penalties(table, s)), estimates)
        inputs = AdvantageInputs(
            groups=batch.trajectories,
            penalties_N=penalties_N,
            earlier_K=earlier_K,
            after_K=estimates.after_K,
            values_N=None if values_N is None else table.of_completions(values_N),
            gamma=s.gamma,
            gae_lambda=s.gae_lambda,
            clip=s.advantage_clip,
        )
        targets = self._algorithm.advantages(inputs)
        log = StepLog(batch.table, self.ranks)
        advantages_N = table.with_answers(targets.advantages_N, of_answers=table.answer_advantages_N)
        zeros_N = torch.zeros_like(advantages_N)
        returns_N = None if targets.returns_N is None else table.with_answers(targets.returns_N, of_answers=zeros_N)
        weights = None
        if s.importance == "second_moment":
            columns = (table.behaviour_N, table.completions_N, table.answer_N)
            weights = staleness_weights(estimates.proximal_N, *columns, s, advantages_N)
        first = next((m.tokens for m in batch.minibatches if m.micro_batches), slice(0, 0))
        return _Step(table, estimates, advantages_N, returns_N, weights, first, log)

    # ── one minibatch ────────────────────────────────────────────────────────────────────────────────────────────────

    def _update(self, minibatch: MiniBatch, step: _Step, version: int) -> float:
        """One optimizer update of each model. Returns the norm of the policy's gradient; 0 while the critic warms
        up."""
        initial = minibatch.tokens == step.first
        own = [micro.to(self.policy.device) for micro in share(minibatch.micro_batches, self.ranks)]
        if self.critic is not None:
            critic = self.critic
            self.optimizers["critic"].update(own, lambda micro: self._value_loss(critic, micro, step))
            if version < self._settings.critic_warmup_steps:
                with torch.no_grad():  # for the step's figures only
                    for micro in own:
                        self._policy_loss(micro, step, initial)
                return 0.0
        return self.optimizers["policy"].update(own, lambda micro: self._policy_loss(micro, step, initial))

    def _policy_loss(self, micro: MicroBatch, step: _Step, initial: bool) -> Tensor:
        """The micro-batch's part of the minibatch's loss. `initial`: it belongs to the step's first minibatch."""
        rows_N = micro.table_N
        current_N = self.policy.logprobs(micro, self._settings.temperature)
        self._count(micro)
        if initial:
            step.log.record_initial(rows_N, current_N)
        behaviour_N = step.table.behaviour_N[rows_N]
        proximal_N = self._proximal(current_N.detach(), behaviour_N, rows_N, step)
        sequences_N = step.table.sequences_N[rows_N]
        weights = self._weights(proximal_N, behaviour_N, rows_N, step)
        tokens = LossTokens(current_N, proximal_N, weights.importance_N, step.advantages_N[rows_N], sequences_N)
        values = self._algorithm.policy_loss(tokens, self._clip)
        loss_N = self._with_divergence(values, tokens, rows_N, step) * step.table.scales_N[rows_N]
        step.log.record(
            rows_N,
            loss=loss_N,
            proximal=proximal_N,
            importance=weights.importance_N,
            clipped=values.clipped_N,
            importance_cut_share=weights.cut_N,
        )
        return loss_N.sum()

    def _proximal(self, current_N: Tensor, behaviour_N: Tensor, rows_N: Tensor, step: _Step) -> Tensor:
        """[N] log π_prox: the estimate if there is one, else the current policy's, or with `interpolate`

        log π_prox ≈ log π_b + α(log π_θ − log π_b), α = age / (age + 1): a linear interpolation in policy versions,
        where π_prox is one version behind π_θ and `age` ahead of π_b (AReaL's approximation, which saves the forward
        pass).
        """
        if self._settings.proximal == "interpolate":
            ages_N = step.table.ages_N[rows_N]
            return behaviour_N + ages_N / (ages_N + 1) * (current_N - behaviour_N)
        estimated_N = step.estimates.proximal_N[rows_N]
        return torch.where(estimated_N.isnan(), current_N, estimated_N)

    def _weights(self, proximal_N: Tensor, behaviour_N: Tensor, rows_N: Tensor, step: _Step) -> StalenessWeights:
        if (known := step.weights) is not None:
            return StalenessWeights(known.importance_N[rows_N], known.cut_N[rows_N])
        table, advantages_N = step.table, step.advantages_N[rows_N]
        columns = (behaviour_N, table.completions_N[rows_N], table.answer_N[rows_N])
        return staleness_weights(proximal_N, *columns, self._settings, advantages_N)

    def _with_divergence(self, values: LossValues, tokens: LossTokens, rows_N: Tensor, step: _Step) -> Tensor:
        """[N] the algorithm's loss plus, with kl_in `loss`, the divergence term, with the same staleness weight.

        Answer tokens have no divergence term, because the policy did not choose them.
        """
        s, reference_N = self._settings, step.estimates.reference_N
        if reference_N is None:
            return values.loss_N
        kl_N = kl_estimate(tokens.current_N, reference_N[rows_N], s.kl_estimator)
        kl_N = kl_N.masked_fill(step.table.answer_N[rows_N], 0.0)
        step.log.record(rows_N, reference_kl=kl_N)
        if s.kl_in == "reward":
            return values.loss_N
        return values.loss_N + s.kl_coefficient * tokens.importance_N * kl_N

    def _value_loss(self, critic: Critic, micro: MicroBatch, step: _Step) -> Tensor:
        """The micro-batch's part of the critic's loss: the same mean as the policy's, with 0 for answer tokens."""
        assert step.returns_N is not None
        assert step.estimates.values_N is not None
        rows_N = micro.table_N
        values_N = critic.values(micro)
        self._count(micro)
        before_N, returns_N = step.estimates.values_N[rows_N], step.returns_N[rows_N]
        loss_N = clipped_value(values_N, before_N, returns_N, self._settings.value_clip)
        step.log.record(rows_N, value_loss=loss_N, value=values_N)
        return (loss_N * step.table.scales_N[rows_N]).masked_fill(step.table.answer_N[rows_N], 0.0).sum()


def _penalties(batch: StepBatch, penalties_N: Column, estimates: Estimates) -> tuple[Column, Column]:
    """Adds the penalties of sampled tokens that do not contribute (`ChargedTokens`).

    Returns (penalties of contributing completion tokens, each including those of the following tokens that do not
    contribute; for each of the K trajectories, the sum of penalties before its first contributing token).
    """
    earlier_K = np.zeros(sum(map(len, batch.samples)))
    if batch.charged is not None and estimates.charged_M is not None:
        charged_M, after = estimates.charged_M.double().cpu().numpy(), batch.charged.after
        first = after < 0
        np.add.at(penalties_N, after[~first], charged_M[~first])
        np.add.at(earlier_K, batch.charged.trajectory[first], charged_M[first])
    return penalties_N, earlier_K
