"""GaLore and Fira: the subspace is spanned by the gradient's leading singular vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from .adamw import BETAS
from .low_rank import LowRankAdamW, Move

_GROWTH = 1.01
"""Fira's γ: the norm of the part outside the subspace grows by at most this factor from update to update."""
_EPS = 1e-8


class GaLore(LowRankAdamW):
    """GaLore (arXiv 2403.03507): P holds the r leading left singular vectors of G; state: mr + 2nr numbers per matrix.

    The moments are not changed when P changes.
    """

    def _no_subspace(self, p: Tensor, m: int, r: int) -> dict[str, Tensor]:
        return {"basis": p.new_zeros(m, r)}

    def _choose(self, gradient_mn: Tensor, state: dict[str, Tensor]) -> None:
        state["basis"].copy_(leading_directions(gradient_mn, state["basis"].shape[1]))

    def _basis(self, state: dict[str, Tensor], m: int) -> Tensor:
        return state["basis"]


class Fira(GaLore):
    """Fira (arXiv 2410.01623): W ← (1 − ηλ) W − η (α P N + S): GaLore plus the part S of the gradient that it omits.
    State: GaLore's and one number per matrix.

    S = φ ⊙ (G − α PPᵀG): column i is scaled by φᵢ = ‖Nᵢ‖ / ‖Rᵢ‖, the factor that Adam applied to it in the subspace.
    If ‖S‖, before Adam's bias correction, exceeds γ times that of the previous update, S is scaled down to that bound.
    As in the authors' code, S has no factor α, subtracts α PPᵀG, and is limited before the bias correction. Unlike
    there, a previous norm of zero imposes no limit.
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

    They are computed as the eigenvectors of GGᵀ, which is several times cheaper than an SVD. Squaring makes only those
    directions inaccurate whose singular values, relative to the largest, are near the rounding of float32. G must not
    be all zero; it is scaled first, so that small entries do not vanish when squared.
    """
    scaled_mn = gradient_mn / gradient_mn.abs().max()
    basis_mr = torch.linalg.eigh(scaled_mn @ scaled_mn.mT).eigenvectors[:, -r:].flip(1)
    largest_1r = basis_mr.abs().argmax(dim=0, keepdim=True)
    return basis_mr * basis_mr.gather(0, largest_1r).sign()


def limit_growth(norm: Tensor, before: Tensor) -> Tensor:
    """[] the factor, at most 1, that limits `norm` to γ × `before`; `before` is overwritten with the limited norm.

    A `before` of zero (no update yet, or nothing outside the subspace at the last) imposes no limit.
    """
    allowed = torch.where(before > 0, _GROWTH * before, torch.inf)
    factor = torch.clamp(allowed / norm, max=1.0)
    before.copy_(torch.minimum(norm, allowed))
    return factor
