"""The chunked log-probabilities against full logits and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headrace_learner.models import chunked_logprobs
from headrace_learner.models.chunked_logprobs import chosen_logprobs


def cases(bias: bool, dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    layer = nn.Linear(8, 21, bias=bias, dtype=dtype)
    return layer, torch.randn(13, 8, dtype=dtype, requires_grad=True), torch.randint(0, 21, (13,))


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 100])
def test_values_and_gradients_are_those_of_full_logits(
    monkeypatch: pytest.MonkeyPatch, bias: bool, temperature: float, chunk_tokens: int, soft_cap: float | None
) -> None:
    monkeypatch.setattr(chunked_logprobs, "_LOGITS_AT_ONCE", 21 * chunk_tokens)
    layer, hidden, targets = cases(bias)
    weights = torch.randn(13, dtype=torch.float64)
    logits = layer(hidden) if soft_cap is None else soft_cap * torch.tanh(layer(hidden) / soft_cap)
    expected = torch.log_softmax(logits / temperature, -1).gather(1, targets[:, None])[:, 0]
    inputs = [hidden, *layer.parameters()]
    oracle = torch.autograd.grad((expected * weights).sum(), inputs)
    found = chosen_logprobs(layer, hidden, targets, temperature, soft_cap)
    torch.testing.assert_close(found, expected)
    for gradient, value in zip(torch.autograd.grad((found * weights).sum(), inputs), oracle, strict=True):
        torch.testing.assert_close(gradient, value)


def test_what_is_kept_between_the_passes_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, hidden, targets = cases(bias=True, dtype=torch.float32)
    monkeypatch.setattr(chunked_logprobs, "_LOGITS_AT_ONCE", 21 * 3)
    found = []
    for kept in (0, 2, 100):
        monkeypatch.setattr(chunked_logprobs, "_CHUNKS_KEPT", kept)
        logprobs = chosen_logprobs(layer, hidden, targets, 0.7)
        found.append([logprobs, *torch.autograd.grad(logprobs.sum(), [hidden, *layer.parameters()])])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_second_backward_pass_makes_what_was_kept_again() -> None:
    layer, hidden, targets = cases(bias=False)
    total = chosen_logprobs(layer, hidden, targets, 1.0).sum()
    first, second = (torch.autograd.grad(total, layer.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_frozen_head_gets_no_gradient() -> None:
    layer, hidden, targets = cases(bias=False)
    layer.requires_grad_(False)
    chosen_logprobs(layer, hidden, targets, 1.0).sum().backward()
    assert layer.weight.grad is None
    assert hidden.grad is not None


def test_no_token_is_no_gradient() -> None:
    layer, hidden, targets = cases(bias=False)
    chosen_logprobs(layer, hidden[:0], targets[:0], 1.0).sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_bfloat16_factors_give_float32_log_probabilities_and_sums_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's gradient is summed over chunks in float32, and rounded once."""
    monkeypatch.setattr(chunked_logprobs, "_LOGITS_AT_ONCE", 21)
    layer, hidden, targets = cases(bias=True, dtype=torch.float32)
    exact = chosen_logprobs(layer, hidden, targets, 1.0)
    exact.sum().backward()
    rounded_layer = nn.Linear(8, 21, dtype=torch.bfloat16)
    rounded_layer.load_state_dict(layer.state_dict())
    rounded = chosen_logprobs(rounded_layer, hidden.bfloat16(), targets, 1.0)
    rounded.sum().backward()
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)
    for found, wanted in zip(rounded_layer.parameters(), layer.parameters(), strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert found.grad.dtype == torch.bfloat16
        torch.testing.assert_close(found.grad.float(), wanted.grad, rtol=0.02, atol=0.05)


def test_logits_of_rounded_factors_are_not_rounded_again() -> None:
    """Of a large logit, bfloat16 keeps 8 bits: rounded, log-probabilities were off by hundredths."""
    layer, hidden, targets = cases(bias=False, dtype=torch.float32)
    with torch.no_grad():
        layer.weight.mul_(20)
        factors = hidden.bfloat16(), layer.weight.bfloat16()
        exact = torch.log_softmax(factors[0].double() @ factors[1].double().T, -1)
        rounded = torch.log_softmax((factors[0] @ factors[1].T).double(), -1)
        found = chosen_logprobs(layer.bfloat16(), hidden.bfloat16(), targets, 1.0).double()
    exact, rounded = (every.gather(1, targets[:, None])[:, 0] for every in (exact, rounded))
    assert (rounded - exact).abs().max() > 0.01
    assert (found - exact).abs().max() < 1e-4
