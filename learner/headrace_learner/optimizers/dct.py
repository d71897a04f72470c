"""DCT-AdamW: the subspace is spanned by columns of a fixed cosine basis that all matrices of a size share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from headrace_core.config.hyperparameters import Hyperparameters

from .low_rank import LowRankAdamW


class DctAdamW(LowRankAdamW):
    """DCT-AdamW (arXiv 2505.17967): P holds the r columns of the cosine basis with the largest norms of their rows of
    PᵀG. State: 2nr + r numbers per matrix.

    When the columns change, the moments of columns that remain are carried over (the paper's rotation PᵀP', which
    consists of zeros and ones for columns of one basis), and those of new columns start at zero. As in the paper, the
    columns are chosen at every update and updates are not scaled, unless the settings say otherwise. The paper's error
    feedback, which is optional and needs an m × n matrix of state, is left out. The authors' code has this method as
    the variant with rotation over vectors of the DCT-II; it chooses the columns with the largest sums of absolute
    values, and we those with the largest norms, which minimizes the part of G that is left out.
    """

    def __init__(self, model: nn.Module, settings: Hyperparameters) -> None:
        super().__init__(model, settings)
        self._bases: dict[tuple[int, torch.device], Tensor] = {}

    def _no_subspace(self, p: Tensor, m: int, r: int) -> dict[str, Tensor]:
        return {"columns": torch.arange(r, dtype=torch.int32, device=p.device)}

    def _choose(self, gradient_mn: Tensor, state: dict[str, Tensor]) -> None:
        previous_r = state["columns"].clone()
        norm_m = (self._cosines(len(gradient_mn), gradient_mn.device).mT @ gradient_mn).norm(dim=1)
        chosen_r = norm_m.argsort(descending=True, stable=True)[: len(previous_r)]
        state["columns"].copy_(chosen_r.sort().values)
        rotation_rr = (state["columns"][:, None] == previous_r).to(gradient_mn.dtype)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name].copy_(rotation_rr @ state[name])

    def _basis(self, state: dict[str, Tensor], m: int) -> Tensor:
        return self._cosines(m, state["columns"].device)[:, state["columns"]]

    def _cosines(self, m: int, device: torch.device) -> Tensor:
        if (m, device) not in self._bases:
            self._bases[m, device] = cosine_basis(m).to(device)
        return self._bases[m, device]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state; torch casts all of it to the parameter's dtype, so the column numbers are cast back."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "columns" in state:
                state["columns"] = state["columns"].to(torch.int32)


def cosine_basis(m: int) -> Tensor:
    """[m, m] float32, orthonormal: column k is a cosine of k half periods (the basis vectors of the DCT-II)."""
    sample_m1 = torch.arange(m, dtype=torch.float64)[:, None] + 0.5
    basis_mm = torch.cos(sample_m1 * torch.arange(m, dtype=torch.float64) * (math.pi / m)) * math.sqrt(2 / m)
    basis_mm[:, 0] = math.sqrt(1 / m)
    return basis_mm.float()
