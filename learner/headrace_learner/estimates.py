"""What models say of a step's tokens before its first update: forward passes without a gradient, into table columns.

proximal     by the policy as it is now; by default only where a later minibatch, or the advantages, need it: the
             first minibatch's own forward pass has it
reference    by the base model, where a divergence from it is wanted
values       by the critic, where there is one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace_core.hyperparameters import Hyperparameters

from .batch import MicroBatch, MiniBatch, StepBatch, Table
from .critic import Critic
from .divergence import kl_estimate
from .model import Policy
from .ranks import Ranks, share

Forward = Callable[[MicroBatch], Tensor]


@dataclass(frozen=True, slots=True)
class Estimates:
    """Columns of the step's table, [N] each; None where nobody asks for one."""

    proximal_N: Tensor
    """NaN where the update's own forward pass gives it."""
    reference_N: Tensor | None
    values_N: Tensor | None

    def penalties(self, table: Table, settings: Hyperparameters) -> Tensor:
        """[N] what the divergence from the base model takes from each token's reward: coefficient × estimate.

        Of the proximal policy where it is computed beforehand, else of the behaviour policy.
        """
        if self.reference_N is None or settings.kl_in == "loss":
            return torch.zeros_like(table.behaviour_N)
        policy_N = torch.where(self.proximal_N.isnan(), table.behaviour_N, self.proximal_N)
        return settings.kl_coefficient * kl_estimate(policy_N, self.reference_N, settings.kl_estimator)


class Estimator:
    """Makes them, with the models of a trainer."""

    def __init__(
        self,
        policy: Policy,
        reference: Callable[[MicroBatch], Tensor] | None,
        critic: Critic | None,
        settings: Hyperparameters,
        ranks: Ranks,
    ) -> None:
        self._policy = policy
        self._reference = reference
        self._critic = critic
        self._settings = settings
        self._ranks = ranks

    @torch.no_grad()
    def __call__(self, batch: StepBatch, table: Table) -> Estimates:
        """`table` is the batch's, on the training device."""
        proximal_N = self._proximal(batch, table)
        reference, critic = self._reference, self._critic
        return Estimates(
            proximal_N=proximal_N,
            reference_N=None if reference is None else self._column(batch.minibatches, table, reference),
            values_N=None if critic is None else self._column(batch.minibatches, table, critic.values),
        )

    def _proximal(self, batch: StepBatch, table: Table) -> Tensor:
        s = self._settings
        if s.proximal == "behaviour":
            return table.behaviour_N
        if s.proximal == "interpolate":
            return torch.full_like(table.behaviour_N, torch.nan)
        at_once = s.importance == "second_moment" or (self._reference is not None and s.kl_in == "reward")
        later = batch.minibatches if at_once else batch.minibatches[1:]
        computed_N = self._column(later, table, lambda micro: self._policy.logprobs(micro, s.temperature))
        for minibatch in batch.minibatches[: len(batch.minibatches) - len(later)]:
            computed_N[minibatch.tokens] = torch.nan
        return computed_N

    def _column(self, minibatches: Sequence[MiniBatch], table: Table, forward: Forward) -> Tensor:
        """Zero outside `minibatches`."""
        column_N = torch.zeros_like(table.behaviour_N)
        for minibatch in minibatches:
            for micro_batch in share(minibatch.micro_batches, self._ranks):
                micro = micro_batch.to(column_N.device)
                column_N[micro.table_N] = forward(micro)
        return self._ranks.sum(column_N)
