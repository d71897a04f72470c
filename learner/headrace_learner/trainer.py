"""One step of training: groups in, updated weights and figures out. Pure torch: no Redis, no clock but for durations.

    groups ─► advantages ─► minibatches ─► proximal log-probabilities, by the weights as they are now
                                              │
              ┌───────────── each minibatch ──┘
              ▼
           loss and backward of each micro-batch ─► clip the gradient ─► optimizer step

Invariants: the same groups in the same order, from the same state, give bit-identical weights; no token older than
max_staleness enters a forward pass's loss; the proximal policy is the one before the first minibatch's update.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace_core.hyperparameters import Hyperparameters
from headrace_core.trajectory import Group

from .algorithms import Algorithm
from .batch import AgeCount, MicroBatch, MiniBatch, minibatches
from .losses import Clip, LossTokens
from .measures import Measured, TokenLog
from .model import Policy
from .optimizers import OPTIMIZERS, learning_rate


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did."""

    counts: AgeCount
    measured: Measured
    loss: float
    """Mean over the contributing tokens."""
    grad_norm: float
    """Before clipping; the largest of the minibatches."""
    learning_rate: float
    batch_seconds: float
    train_seconds: float


class Trainer:
    """The policy, its optimizer, and the one operation on them."""

    def __init__(self, policy: Policy, algorithm: Algorithm, settings: Hyperparameters) -> None:
        self.policy = policy
        self.optimizer = OPTIMIZERS["adamw"](policy.model, settings)
        self._algorithm = algorithm
        self._settings = settings
        self._clip = Clip(settings.clip_low, settings.clip_high, settings.importance_cap)

    def step(self, groups: Sequence[Group], version: int) -> StepResult:
        """Update policy `version` by these groups."""
        began = time.monotonic()
        batches, counts = self._batch(groups, version)
        rate = learning_rate(self._settings, version)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        batched = time.monotonic()
        proximal = self._proximal(batches)
        log = TokenLog()
        norms = [self._update(batch, proximal[i], log) for i, batch in enumerate(batches) if batch.tokens]
        measured = log.measure(counts)
        return StepResult(
            counts=counts,
            measured=measured,
            loss=measured.loss,
            grad_norm=max((float(n) for n in norms), default=0.0),
            learning_rate=rate,
            batch_seconds=batched - began,
            train_seconds=time.monotonic() - batched,
        )

    def _batch(self, groups: Sequence[Group], version: int) -> tuple[list[MiniBatch], AgeCount]:
        s = self._settings
        return minibatches(groups, self._algorithm.advantages, version, s.max_staleness, s.minibatches, s.token_budget)

    @torch.no_grad()
    def _proximal(self, batches: list[MiniBatch]) -> list[list[Tensor] | None]:
        """By the weights before the update. None for the first minibatch: its own forward pass has them."""
        return [None, *([self._logprobs(m)[1] for m in b.micro_batches] for b in batches[1:])]

    def _update(self, batch: MiniBatch, proximal: list[Tensor] | None, log: TokenLog) -> Tensor:
        """One optimizer update; returns the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        for i, micro_batch in enumerate(batch.micro_batches):
            micro, current_N = self._logprobs(micro_batch)
            proximal_N = current_N.detach() if proximal is None else proximal[i]
            self._loss(micro, current_N, proximal_N, log).div(batch.tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self._settings.max_grad_norm)
        self.optimizer.step()
        return norm

    def _logprobs(self, micro_batch: MicroBatch) -> tuple[MicroBatch, Tensor]:
        micro = micro_batch.to(self.policy.device)
        return micro, self.policy.logprobs(micro, self._settings.temperature)

    def _loss(self, micro: MicroBatch, current_N: Tensor, proximal_N: Tensor, log: TokenLog) -> Tensor:
        """Sum over the micro-batch's tokens."""
        tokens = LossTokens(current_N, proximal_N, micro.behaviour_N, micro.advantages_N, micro.ages_N, micro.rows_N)
        values = self._algorithm.policy_loss(tokens, self._clip)
        weighted_N = values.loss_N * micro.weights_N
        log.add(tokens, values, weighted_N)
        return weighted_N.sum()
