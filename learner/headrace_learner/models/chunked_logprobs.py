"""Log-probabilities of chosen tokens straight from hidden states: full logits never exist.

    forward    for each chunk of tokens: logits ─► exponentials, their sum and the target's; those of the first chunks
               are kept for the backward pass, up to a bound; of the others only maximum and sum
    backward   for each chunk: exponentials, kept or made again ─► gradient of the logits, in place ─► both products

A soft cap c puts c·tanh(logits / c) in the logits' place; its slope is taken of logits made again.

Autograd over the same lines would hold four arrays of the logits' size a chunk and a gradient of the whole head for
each; written out, it is one array and one gradient. What is kept saves a third product with the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LOGITS_AT_ONCE = 2**24
"""Logits of one chunk, float32: 64 MiB, whatever the vocabulary."""
_CHUNKS_KEPT = 4
"""256 MiB between the passes: all of a usual micro-batch on a CPU, a bounded part of any other."""


def chosen_logprobs(
    head: nn.Linear, hidden_ND: Tensor, targets_N: Tensor, temperature: float, soft_cap: float | None = None
) -> Tensor:
    """[N] float32: log softmax(cap(hidden·Wᵀ + bias) / temperature) at the targets. Differentiable once."""
    kept = _CHUNKS_KEPT if torch.is_grad_enabled() and soft_cap is None else 0
    found: Tensor = _ChosenLogprobs.apply(hidden_ND, head.weight, head.bias, targets_N, temperature, soft_cap, kept)
    return found


class _ChosenLogprobs(torch.autograd.Function):
    """N tokens in chunks of n, D hidden, V words; factors in the precision of the hidden states, logits float32, never
    rounded."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        temperature: float,
        soft_cap: float | None,
        kept: int,
    ) -> Tensor:
        ctx.dtype = hidden_ND.dtype
        ctx.temperature, ctx.soft_cap = temperature, soft_cap
        logprobs_N = torch.empty(len(hidden_ND), dtype=_logit_dtype(ctx.dtype), device=hidden_ND.device)
        highest_N, sums_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        cast_VD = weight_VD.to(ctx.dtype)
        ctx.kept = []
        for chunk in _chunks(hidden_ND, weight_VD):
            logits_nV = _logits(ctx, hidden_ND[chunk], cast_VD, bias_V)
            highest_N[chunk] = logits_nV.amax(1)
            chosen_n = logits_nV.gather(1, targets_N[chunk, None])[:, 0]
            exponentials_nV = _exponentials(logits_nV, highest_N[chunk])
            sums_N[chunk] = exponentials_nV.sum(1)
            logprobs_N[chunk] = chosen_n - highest_N[chunk] - sums_N[chunk].log()
            if len(ctx.kept) < kept:
                ctx.kept.append(exponentials_nV)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, highest_N, sums_N)
        return logprobs_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """∂ log p(target) / ∂ logits = onehot(target) − softmax."""
        hidden_ND, weight_VD, bias_V, targets_N, highest_N, sums_N = ctx.saved_tensors
        wanted_hidden, wanted_weight, wanted_bias = ctx.needs_input_grad[:3]
        to_hidden_ND = torch.empty_like(hidden_ND) if wanted_hidden else None
        to_weight_VD = _sum_like(weight_VD) if wanted_weight else None
        to_bias_V = _sum_like(bias_V) if wanted_bias and bias_V is not None else None
        cast_VD = weight_VD.to(ctx.dtype)
        kept, ctx.kept = ctx.kept[::-1], []  # each is changed in place and let go: a second pass would make them again
        for chunk in _chunks(hidden_ND, weight_VD):
            slope_nV = None
            if kept:
                exponentials_nV = kept.pop()
            else:
                logits_nV = _logits(ctx, hidden_ND[chunk], cast_VD, bias_V)
                slope_nV = _slope(ctx, logits_nV)
                exponentials_nV = _exponentials(logits_nV, highest_N[chunk])
            scale_n1 = (gradients[0] / ctx.temperature)[chunk, None]
            to_logits_nV = exponentials_nV.mul_(-scale_n1 / sums_N[chunk, None])
            to_logits_nV = to_logits_nV.scatter_add_(1, targets_N[chunk, None], scale_n1)
            to_logits_nV = (to_logits_nV if slope_nV is None else to_logits_nV.mul_(slope_nV)).to(ctx.dtype)
            if to_hidden_ND is not None:
                to_hidden_ND[chunk] = to_logits_nV @ cast_VD
            if to_weight_VD is not None:
                _add_product(to_weight_VD, to_logits_nV.T, hidden_ND[chunk])
            if to_bias_V is not None:
                to_bias_V += to_logits_nV.sum(0)
        return to_hidden_ND, _as(weight_VD, to_weight_VD), _as(bias_V, to_bias_V), None, None, None, None


def _sum_like(parameter: Tensor) -> Tensor:
    """Zeros to sum the chunks' gradients in: float32 at least."""
    return torch.zeros_like(parameter, dtype=_logit_dtype(parameter.dtype))


def _as(parameter: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """In the parameter's precision, in which autograd takes it."""
    return None if parameter is None or gradient is None else gradient.to(parameter.dtype)


def _exponentials(logits_nV: Tensor, highest_n: Tensor) -> Tensor:
    """exp(logits − highest), in the logits' place."""
    return logits_nV.sub_(highest_n[:, None]).exp_()


def _logits(ctx: Any, hidden_nD: Tensor, cast_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_nV = _product(hidden_nD, cast_VD.T)
    if bias_V is not None:
        logits_nV += bias_V
    if ctx.soft_cap is not None:
        logits_nV.div_(ctx.soft_cap).tanh_().mul_(ctx.soft_cap)
    return logits_nV if ctx.temperature == 1 else logits_nV.div_(ctx.temperature)


def _slope(ctx: Any, logits_nV: Tensor) -> Tensor | None:
    """∂ cap(x) / ∂x = 1 − tanh²(x / c), from what `_logits` gives; None without a cap."""
    if ctx.soft_cap is None:
        return None
    return (logits_nV * (ctx.temperature / ctx.soft_cap)).square_().neg_().add_(1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, summed and kept in float32 at least.

    A logit of 20 rounded to bfloat16 is off by up to 0.06, and so is its log-probability. A GPU's kernel writes its
    float32 sums; a CPU's does not offer it, where bfloat16 serves tests alone.
    """
    wide = _logit_dtype(left.dtype)
    if left.dtype == wide:
        return left @ right
    return torch.mm(left, right, out_dtype=wide) if left.is_cuda else left.to(wide) @ right.to(wide)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without an array of its size where the dtypes allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _chunks(hidden_ND: Tensor, weight_VD: Tensor) -> list[slice]:
    size = max(1, _LOGITS_AT_ONCE // len(weight_VD))
    return [slice(start, start + size) for start in range(0, len(hidden_ND), size)]


def _logit_dtype(product: torch.dtype) -> torch.dtype:
    """float32, or better where the model has it."""
    return torch.promote_types(product, torch.float32)
