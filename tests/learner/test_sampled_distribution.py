"""The learner's distribution is the one that engines sample: over the whole vocabulary, at the job's temperature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from headrace_core.types.trajectory import Completion, Group, Role
from headrace_learner.training.trainer import Trainer

from .cases import VOCAB, assert_close, recorded

PROMPT = np.array([3, 1, 4, 1, 5], np.int32)
MAX_TOKENS = 16


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_the_expected_gradient_is_that_of_the_reward_at_the_sampling_temperature(
    make_trainer: Callable[..., Trainer], model_folder: Path, temperature: float
) -> None:
    """By exact enumeration: every token once, as a completion of its own, weighted by its probability.

    The loss' gradient, in expectation, is then −∇ Σ_y π(y)·r(y), π = softmax(logits / temperature).
    """
    rewards = torch.linspace(-1.0, 1.0, VOCAB).sin() * 2
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder)
    logits = model(input_ids=torch.from_numpy(PROMPT).long()[None]).logits[0, -1]
    probabilities = (logits / temperature).softmax(-1)
    (probabilities * rewards).sum().backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]

    group = enumerated(probabilities.detach(), rewards)
    trainer = make_trainer(
        **{"algorithm": "remax", "kl_coefficient": 0.0, "temperature": temperature, "max_tokens": MAX_TOKENS},
        **{"batch_size": 1, "max_grad_norm": 1e9},
    )
    updates = recorded(trainer.optimizers["policy"], move=False)
    result = trainer.step([group], version=0)
    scale = -VOCAB * MAX_TOKENS  # of the mean over completions × max_tokens
    assert_close([g * scale for g in updates[0].gradients], expected, 1e-4)
    np.testing.assert_allclose(result.importance_N, 1.0, atol=1e-4)


def enumerated(probabilities: torch.Tensor, rewards: torch.Tensor) -> Group:
    """Every token of the vocabulary as a completion, its probability as its weight in the loss; the baseline is 0."""

    def completion(token: int, reward: float) -> Completion:
        p = float(probabilities[token])
        return Completion(
            token_ids=np.array([token], np.int32),
            logprobs=np.log(np.array([p], np.float32)),
            versions=np.zeros(1, np.int32),
            roles=np.full(1, Role.COMPLETION, np.uint8),
            loss_weights=np.array([p], np.float32),
            finish_reason="length",
            reward=reward,
        )

    each = tuple(completion(token, float(rewards[token])) for token in range(VOCAB))
    return Group(0, 1, 0, 0, PROMPT, each, completion(0, 0.0))
