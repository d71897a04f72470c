"""GaLore and Fira: the subspace is that of the gradient's leading singular vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from .adamw import BETAS
from .low_rank import LowRankAdamW, Move

_GROWTH = 1.01
"""Fira's γ: the norm of the part outside the subspace grows by at most this factor from update to update."""
_EPS = 1e-8


class GaLore(LowRankAdamW):
    """GaLore (arXiv 2403.03507): P holds the r leading left singular vectors of G; state mr + 2nr.

    The moments stay as they are when P changes.
    """

    def _no_subspace(self, p: Tensor, m: int, r: int) -> dict[str, Tensor]:
        return {"basis": p.new_zeros(m, r)}

    def _choose(self, gradient_mn: Tensor, state: dict[str, Tensor]) -> None:
        state["basis"].copy_(leading_directions(gradient_mn, state["basis"].shape[1]))

    def _basis(self, state: dict[str, Tensor], m: int) -> Tensor:
        return state["basis"]


class Fira(GaLore):
    """Fira (arXiv 2410.01623): GaLore, and what it leaves out: W ← (1 − ηλ) W − η (α P N + S); state of GaLore + 1.

    S = φ ⊙ (G − α PPᵀG): column i is scaled by φᵢ = ‖Nᵢ‖ / ‖Rᵢ‖, which is what Adam did to it within the subspace.
    Where ‖S‖, before Adam's correction for its zero start, exceeds γ‖S before‖, S is cut down to that. All as in the
    authors' code: S has no factor α, takes α of PPᵀG off, and is limited uncorrected. Unlike there, a norm of zero
    limits nothing after it.
    """

    def _no_subspace(self, p: Tensor, m: int, r: int) -> dict[str, Tensor]:
        return {**super()._no_subspace(p, m, r), "outside_norm": torch.zeros((), device=p.device)}

    def _direction(self, move: Move, state: dict[str, Tensor]) -> Tensor:
        factor_n = move.adam_rn.norm(dim=0) / (move.projected_rn.norm(dim=0) + _EPS)
        outside_mn = (move.gradient_mn - move.scale * (move.basis_mr @ move.projected_rn)) * factor_n
        corrected = (1 - BETAS[1] ** state["step"]).sqrt() / (1 - BETAS[0] ** state["step"])
        outside_mn *= limit_growth(outside_mn.norm() / corrected, state["outside_norm"])
        return super()._direction(move, state) + outside_mn


def leading_directions(gradient_mn: Tensor, r: int) -> Tensor:
    """[m, r] the r leading left singular vectors of an m × n matrix, m ≤ n, each with its largest entry positive.

    By the eigenvectors of GGᵀ, which are the same and several times cheaper. Squaring costs the accuracy of those
    directions only whose share of G is near the rounding of float32. G, which is not all zero, is scaled before, so
    that a small one does not vanish when squared.
    """
    scaled_mn = gradient_mn / gradient_mn.abs().max()
    basis_mr = torch.linalg.eigh(scaled_mn @ scaled_mn.mT).eigenvectors[:, -r:].flip(1)
    largest_1r = basis_mr.abs().argmax(dim=0, keepdim=True)
    return basis_mr * basis_mr.gather(0, largest_1r).sign()


def limit_growth(norm: Tensor, before: Tensor) -> Tensor:
    """[] the factor, at most 1, that keeps `norm` within γ times `before`, which becomes the norm that is left.

    A `before` of zero (no update yet, or nothing outside at the last) limits nothing.
    """
    allowed = torch.where(before > 0, _GROWTH * before, torch.inf)
    factor = torch.clamp(allowed / norm, max=1.0)
    before.copy_(torch.minimum(norm, allowed))
    return factor
