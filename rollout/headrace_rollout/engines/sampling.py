"""Samples one token for every row of a batch, with the log-probability in the distribution it was drawn from.

* temperature t > 0: softmax(logits / t), truncated to the nucleus of mass `top_p` (Holtzman et al. 2020), renormalised;
* temperature 0: the likeliest token, with its log-probability in the whole distribution at temperature 1.

A draw inverts the cumulative distribution at one uniform random number per row, so that a row's token depends only on
its own number, never on the other rows of the batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

_BELOW_ONE = 1.0 - 2.0**-50
"""Keeps uniform × total mass below the total mass in spite of rounding, so that no token of probability 0 is drawn."""


def tempered(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """log softmax(logits / temperature) in float32: [n, …, V] from [n, …, V] and [n]; temperature 0 counts as 1."""
    divisor = torch.where(temperature > 0, temperature, 1.0)
    return torch.log_softmax(logits.float() / divisor.view(-1, *[1] * (logits.ndim - 1)), dim=-1)


def nucleus(logprobs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Truncate log-probabilities [n, V] to the smallest set of likeliest tokens with mass ≥ `top_p` [n];
    renormalise."""
    ordered, order = logprobs.sort(dim=-1, descending=True)
    mass = ordered.exp()
    outside = mass.cumsum(dim=-1) - mass >= top_p[:, None]
    outside[:, 0] = False  # the likeliest token stays, even if rounding makes a small top_p 0
    cut = logprobs.masked_fill(outside.scatter(1, order, outside), float("-inf"))
    return cut.log_softmax(dim=-1)


class Drawn(NamedTuple):
    """One sampled token for every row; all [n]."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    certainties: torch.Tensor
    """KL(uniform ‖ distribution), nats; infinite if the distribution was truncated to a nucleus."""


def sample(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor, measure: bool = False
) -> Drawn:
    """Sample from logits [n, V]. `uniform` [n] is float64 in [0, 1). Without `measure`, entropies and certainties are
    NaN."""
    logprobs = tempered(logits, temperature)
    greedy = temperature == 0
    cut = (top_p < 1) & ~greedy
    if bool(cut.any()):
        # The other rows get 2, not 1: if rounding raises their mass above 1, they must not lose their last tokens.
        logprobs = nucleus(logprobs, top_p.masked_fill(~cut, 2.0))
    mass = logprobs.exp().double().cumsum(dim=-1)
    target = uniform[:, None] * mass[:, -1:] * _BELOW_ONE
    tokens = torch.searchsorted(mass, target, right=True)
    if bool(greedy.any()):
        tokens = torch.where(greedy[:, None], logprobs.argmax(dim=-1, keepdim=True), tokens)
    entropies, certainties = spread(logprobs) if measure else logits.new_full((2, len(logits)), torch.nan)
    return Drawn(tokens[:, 0], logprobs.gather(1, tokens)[:, 0], entropies, certainties)


def spread(logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(entropy [n], KL(uniform ‖ p) [n] = −log V − mean log p), in nats, of normalised log-probabilities [n, V]."""
    entropies = torch.special.entr(logprobs.exp()).sum(dim=-1)
    return entropies, -math.log(logprobs.shape[-1]) - logprobs.mean(dim=-1)
