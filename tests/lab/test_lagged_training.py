"""The harness of the staleness evidence: its data is as old as it says, and sampled as it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_lab.training.lagged_training import LaggedRun, Task, adder

pytestmark = pytest.mark.slow


def settings(**changes: object) -> Hyperparameters:
    return Hyperparameters.model_validate(
        {
            "batch_size": 4,
            "group_size": 4,
            "max_tokens": 40,
            "max_context": 56,
            "max_staleness": 4,
            "learning_rate": 1e-3,
            **changes,
        }
    )


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """The adder with few rows to read."""
    whole, short = adder(), tmp_path / "train.jsonl"
    short.write_text("".join(whole.training_file.read_text().splitlines(keepends=True)[:64]))
    return replace(whole, training_file=short)


@pytest.mark.parametrize(("lag", "expected"), [(0, [0, 1, 2, 3]), (2, [0, 0, 0, 1]), (None, [0, 0, 0, 0])])
def test_data_is_exactly_as_old_as_asked(task: Task, lag: int | None, expected: list[int]) -> None:
    run = LaggedRun(task, settings(), lag)
    stepped = [run.step() for _ in expected]
    versions = [{int(v) for g in groups for c in g.completions for v in c.versions} for groups, _ in stepped]
    assert versions == [{version} for version in expected]
    assert [set(result.counts.contributing) for _, result in stepped] == [
        {updated - version} for updated, version in enumerate(expected)
    ]
    assert not any(result.counts.masked for _, result in stepped)


def test_tokens_carry_the_log_probabilities_of_the_lagging_weights(task: Task) -> None:
    run = LaggedRun(task, settings(), lag=1)
    run.step()
    group = run.groups()[0]
    completion = group.completions[0]
    by_base = LaggedRun(task, settings()).trainer.policy.model
    by_newest = run.trainer.policy.model
    assert np.allclose(completion.logprobs, score(by_base, group.prompt_ids, completion.token_ids), atol=1e-4)
    assert not np.allclose(completion.logprobs, score(by_newest, group.prompt_ids, completion.token_ids), atol=1e-4)


@torch.no_grad()
def score(model: torch.nn.Module, prompt: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Log-probabilities [T] of `tokens` after `prompt`, by a plain forward pass."""
    ids = torch.from_numpy(np.concatenate([prompt, tokens])).long()[None]
    logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0].numpy()


def test_runs_repeat(task: Task) -> None:
    rewards, weights = [], []
    for _ in range(2):
        run = LaggedRun(task, settings(), lag=1)
        rewards.append([c.reward for _ in range(3) for g in run.step()[0] for c in g.completions])
        weights.append(run.trainer.policy.model.state_dict())
    assert rewards[0] == rewards[1]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_base_model_starts_between_its_kinds_of_problem(task: Task) -> None:
    run = LaggedRun(task, settings())
    assert 0.5 <= run.accuracy() <= 0.6
    assert run.accuracy() == run.accuracy()


def test_a_lag_that_would_be_masked_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="raise max_staleness"):
        LaggedRun(task, settings(max_staleness=1), lag=2)
