"""Sampling: frequencies match the distribution, and log-probabilities are those of the distribution sampled from."""

from __future__ import annotations

import torch

from headrace_rollout.engines.sampling import sample

from .tiny_model import processed_logprobs

DRAWS = 100_000
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def draw(temperature: float, top_p: float, draws: int = DRAWS) -> tuple[torch.Tensor, torch.Tensor]:
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(draws)
    return sample(LOGITS.expand(draws, -1), ones * temperature, ones * top_p, uniform)[:2]


def test_frequencies_and_logprobs_are_those_of_the_processed_distribution() -> None:
    for temperature, top_p in ((1.0, 1.0), (0.7, 1.0), (1.3, 0.9), (1.0, 0.5), (1.0, 0.01)):
        expected = processed_logprobs(LOGITS, temperature, top_p)
        tokens, logprobs = draw(temperature, top_p)
        torch.testing.assert_close(logprobs, expected[tokens], atol=1e-6, rtol=0)
        frequencies = tokens.bincount(minlength=len(LOGITS)) / DRAWS
        torch.testing.assert_close(frequencies, expected.exp(), atol=0.006, rtol=0)  # 4 standard errors


def test_greedy_takes_the_likeliest_with_its_untempered_logprob() -> None:
    tokens, logprobs = draw(temperature=0.0, top_p=0.5, draws=3)
    assert tokens.tolist() == [0, 0, 0]
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(-1)[:1].expand(3))


def test_rows_keep_their_own_temperature_and_nucleus() -> None:
    temperature, top_p = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.3, 0.6, 1.0])
    uniform = torch.full((3,), 0.999, dtype=torch.float64)
    tokens, logprobs, *_ = sample(LOGITS.expand(3, -1), temperature, top_p, uniform)
    assert tokens.tolist() == [0, 0 if processed_logprobs(LOGITS, 1.0, 0.6)[1].isinf() else 1, 5]
    assert logprobs[2].item() == processed_logprobs(LOGITS, 2.0)[5].item()


def test_the_ends_of_the_unit_interval_draw_tokens_that_have_mass() -> None:
    uniform = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    tokens, logprobs, *_ = sample(LOGITS.flip(0).expand(2, -1), torch.ones(2), torch.full((2,), 0.8), uniform)
    assert torch.isfinite(logprobs).all()
    assert tokens[1] == 5
