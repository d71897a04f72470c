"""AdamW with moments in a subspace: for an m × n matrix, m ≤ n, they are r × n instead of m × n.

    G ──► R = PᵀG ──► Adam ──► N ──► W ← (1 − ηλ) W − ηα P N
           r × n              r × n

P, m × r with orthonormal columns, spans the subspace. It is chosen anew every `interval` updates from the current
gradient; the optimizers differ in how they choose it. A matrix with more rows than columns is transposed first, so that
P is on its shorter side. A square matrix is not transposed; the authors' programs transpose it.

The low-rank update applies to the matrices in the layers whose shorter side is at least the rank. Embeddings, the head
(tied or not), vectors and everything else have full-size moments, as in the papers' experiments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw as fused_adamw

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest

from .adamw import BETAS, moments, trained

_EPS = 1e-8
"""AdamW's ε, torch's default."""


@dataclass(frozen=True, slots=True)
class Move:
    """One update of one matrix."""

    gradient_mn: Tensor
    basis_mr: Tensor
    """P."""
    projected_rn: Tensor
    """R = PᵀG."""
    adam_rn: Tensor
    """N: what Adam subtracts at rate 1, given R."""
    scale: float
    """α."""


class LowRankAdamW(torch.optim.Optimizer, ABC):
    """Base class: parameter groups with a `rank` are updated within subspaces, the others by plain AdamW.

    State of a low-rank matrix: Adam's moments, r × n; `subspace_age`, the number of updates since its subspace was
    chosen; and the subspace, as the subclass stores it. A subspace cannot be chosen from a gradient of zeros (a step
    whose advantages are all zero has one), so the choice waits for the next nonzero gradient.

    Raises `InvalidRequest` for a model that is sharded over several ranks.
    """

    def __init__(self, model: nn.Module, settings: Hyperparameters) -> None:
        defaults = {
            "lr": settings.peak_learning_rate,
            "weight_decay": 0.0,
            "rank": None,
            "interval": settings.subspace_interval,
            "scale": settings.subspace_scale,
        }
        super().__init__(_groups(model, settings), defaults)
        for group in self.param_groups:
            for p in group["params"]:
                own = _local(p)
                self.state[p] = moments(own, own) if group["rank"] is None else self._low_rank_state(own, group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            updates = [(_local(p), _local(p.grad), self.state[p]) for p in group["params"] if p.grad is not None]
            if group["rank"] is None:
                _adam(updates, group["lr"], group["weight_decay"])
            else:
                for p, gradient, state in updates:
                    self._update(p, gradient, state, group)
        return loss

    def _update(self, p: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        gradient_mn = _wide(gradient)
        if int(state["subspace_age"]) >= group["interval"] and bool(gradient_mn.any()):
            self._choose(gradient_mn, state)
            state["subspace_age"].zero_()
        state["subspace_age"] += 1
        basis_mr = self._basis(state, len(gradient_mn))
        projected_rn = basis_mr.mT @ gradient_mn
        moved_rn = torch.zeros_like(projected_rn)
        _adam([(moved_rn, projected_rn, state)], 1.0, 0.0)  # Adam moves zeros, at rate 1, to −N
        move = Move(gradient_mn, basis_mr, projected_rn, moved_rn.neg_(), group["scale"])
        update_mn = self._direction(move, state)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        _wide(p).add_(update_mn, alpha=-group["lr"])

    def _low_rank_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        m, n = sorted(p.shape)
        due = torch.full((), float(group["interval"]), device=p.device)
        moments_rn = moments(p, p.new_empty(group["rank"], n))
        return {**moments_rn, "subspace_age": due, **self._no_subspace(p, m, group["rank"])}

    @abstractmethod
    def _no_subspace(self, p: Tensor, m: int, r: int) -> dict[str, Tensor]:
        """State that stores the subspace, before the first is chosen."""

    @abstractmethod
    def _choose(self, gradient_mn: Tensor, state: dict[str, Tensor]) -> None:
        """Choose the subspace of the next updates from the gradient, store it in `state`, and adapt the moments."""

    @abstractmethod
    def _basis(self, state: dict[str, Tensor], m: int) -> Tensor:
        """[m, r] P, with orthonormal columns."""

    def _direction(self, move: Move, state: dict[str, Tensor]) -> Tensor:
        """[m, n] the update that is subtracted from the matrix at a learning rate of 1."""
        return (move.basis_mr @ move.adam_rn).mul_(move.scale)


def _groups(model: nn.Module, settings: Hyperparameters) -> list[dict[str, Any]]:
    """Low-rank matrices, other matrices, vectors."""
    matrices, vectors = trained(model)
    if any(isinstance(p, DTensor) and p.device_mesh.size() > 1 for p in (*matrices, *vectors)):
        raise InvalidRequest(
            f"optimizer {settings.optimizer} needs whole matrices: set learner_ranks to 1, or optimizer to adamw",
            param="optimizer",
        )
    tables = _tables(model)
    low_rank = [p for p in matrices if p.ndim == 2 and min(p.shape) >= settings.optimizer_rank and id(p) not in tables]
    chosen = {id(p) for p in low_rank}
    others = [p for p in matrices if id(p) not in chosen]
    return [
        {"params": low_rank, "weight_decay": settings.weight_decay, "rank": settings.optimizer_rank},
        {"params": others, "weight_decay": settings.weight_decay},
        {"params": vectors},
    ]


def _local(tensor: Tensor) -> Tensor:
    """A plain tensor in the same memory: a DTensor is whole here, because there is no other rank."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def _tables(model: nn.Module) -> set[int]:
    """Identities of the matrices with a row for each token of the vocabulary: embeddings, and a Hugging Face head."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head else None
    return tables if head is None else tables | {id(head.weight)}


def _wide(matrix: Tensor) -> Tensor:
    """[m, n], m ≤ n: a view of the matrix, transposed if it has more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def _adam(updates: list[tuple[Tensor, Tensor, dict[str, Tensor]]], lr: float, weight_decay: float) -> None:
    """One AdamW update of each (parameter, gradient, state), in place, by torch's fused kernel."""
    fused_adamw(
        [p for p, _, _ in updates],
        [gradient for _, gradient, _ in updates],
        [state["exp_avg"] for _, _, state in updates],
        [state["exp_avg_sq"] for _, _, state in updates],
        [],
        [state["step"] for _, _, state in updates],
        fused=True,
        amsgrad=False,
        beta1=BETAS[0],
        beta2=BETAS[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=_EPS,
        maximize=False,
    )
