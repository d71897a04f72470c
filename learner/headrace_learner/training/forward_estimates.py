"""Forward passes without a gradient before a step's first update, whose results are columns of the step's table.

proximal     log-probabilities by the policy before the update; by default only for later minibatches, or if the
             advantages need them: the first minibatch's own forward pass computes the same
reference    log-probabilities by the base model, if there is a divergence term
values       by the critic, if there is one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headrace_core.config.hyperparameters import Hyperparameters

from ..algorithms.advantages import Column
from ..algorithms.batch import ChargedTokens, MicroBatch, MiniBatch, StepBatch, Table, cut_off
from ..algorithms.kl import kl_estimate
from ..distributed.process_group import ProcessGroup, share
from ..models.critic import Critic
from ..models.policy import Policy

Forward = Callable[[MicroBatch], Tensor]


@dataclass(frozen=True, slots=True)
class Estimates:
    """Columns of the step's table, [N] each; None: not needed."""

    proximal_N: Tensor
    """NaN where the update's own forward pass computes it."""
    reference_N: Tensor | None
    values_N: Tensor | None
    after_K: Column | None
    """The critic's value of the state after each of the K trajectories; 0 unless max_tokens cut it off."""
    charged_M: Tensor | None
    """Penalties of the `ChargedTokens`; None if there are none."""

    def penalties(self, table: Table, settings: Hyperparameters) -> Tensor:
        """[N] what the divergence from the base model subtracts from each token's reward: coefficient × estimate.

        The divergence is that of the proximal policy if it was computed in advance, else of the behaviour policy.
        """
        if self.reference_N is None or settings.kl_in == "loss":
            return torch.zeros_like(table.behaviour_N)
        policy_N = torch.where(self.proximal_N.isnan(), table.behaviour_N, self.proximal_N)
        return penalty(policy_N, self.reference_N, settings)


def penalty(policy_N: Tensor, reference_N: Tensor, settings: Hyperparameters) -> Tensor:
    """[N] the divergence's coefficient times its estimate, from natural log-probabilities."""
    return settings.kl_coefficient * kl_estimate(policy_N, reference_N, settings.kl_estimator)


class Estimator:
    """Computes `Estimates` with the models of a trainer. `reference` None: no divergence term; `critic` None: none."""

    def __init__(
        self,
        policy: Policy,
        reference: Callable[[MicroBatch], Tensor] | None,
        critic: Critic | None,
        settings: Hyperparameters,
        ranks: ProcessGroup,
        computed: Callable[[MicroBatch], None],
    ) -> None:
        """`computed` is called after each forward pass."""
        self._policy = policy
        self._reference = reference
        self._critic = critic
        self._settings = settings
        self._ranks = ranks
        self._computed = computed

    @torch.no_grad()
    def __call__(self, batch: StepBatch, table: Table) -> Estimates:
        """The estimates for one step. `table` is the batch's table on the training device."""
        proximal_N = self._proximal(batch, table)
        reference, critic, like_N = self._reference, self._critic, table.behaviour_N
        return Estimates(
            proximal_N=proximal_N,
            reference_N=None if reference is None else self._column(batch.minibatches, like_N, reference),
            values_N=None if critic is None else self._column(batch.minibatches, like_N, critic.values),
            after_K=None if critic is None else self._after(batch, critic, like_N),
            charged_M=self._charged(batch.charged, table.behaviour_N.device),
        )

    @torch.no_grad()
    def logprobs(self, part: MiniBatch) -> Tensor:
        """[rows of `part`] log-probabilities by the present policy."""
        like_N = torch.zeros(part.tokens.stop, device=self._policy.device)
        return self._column([part], like_N, self._current)

    def _proximal(self, batch: StepBatch, table: Table) -> Tensor:
        s = self._settings
        if s.proximal == "behaviour":
            return table.behaviour_N
        if s.proximal == "interpolate":
            return torch.full_like(table.behaviour_N, torch.nan)
        # Both need the proximal policy of all tokens before the first update.
        for_all = s.importance == "second_moment" or (self._reference is not None and s.kl_in == "reward")
        later = batch.minibatches if for_all else batch.minibatches[1:]
        computed_N = self._column(later, table.behaviour_N, self._current)
        for minibatch in batch.minibatches[: len(batch.minibatches) - len(later)]:
            computed_N[minibatch.tokens] = torch.nan
        return computed_N

    def _after(self, batch: StepBatch, critic: Critic, like_N: Tensor) -> Column:
        after_K = np.zeros(sum(map(len, batch.samples)))
        if self._settings.truncation == "bootstrap":
            ends = cut_off(batch, self._settings)
            values_E = self._column([ends.part], like_N.new_zeros(len(ends.trajectory)), critic.values)
            after_K[ends.trajectory] = values_E.double().cpu().numpy()
        return after_K

    def _charged(self, charged: ChargedTokens | None, device: torch.device) -> Tensor | None:
        """[M] penalties by the same policies as those of contributing tokens."""
        if charged is None or self._reference is None:
            return None
        behaviour_M = charged.behaviour_M.to(device)
        recomputed = self._settings.proximal == "recompute"
        policy_M = self._column([charged.part], behaviour_M, self._current) if recomputed else behaviour_M
        return penalty(policy_M, self._column([charged.part], behaviour_M, self._reference), self._settings)

    def _current(self, micro: MicroBatch) -> Tensor:
        return self._policy.logprobs(micro, self._settings.temperature)

    def _column(self, minibatches: Sequence[MiniBatch], like_N: Tensor, forward: Forward) -> Tensor:
        """[N] results of `forward`, summed over ranks; like `like_N`, and zero outside `minibatches`."""
        column_N = torch.zeros_like(like_N)
        for minibatch in minibatches:
            for micro_batch in share(minibatch.micro_batches, self._ranks):
                micro = micro_batch.to(column_N.device)
                column_N[micro.table_N] = forward(micro)
                self._computed(micro)
        return self._ranks.sum(column_N)
