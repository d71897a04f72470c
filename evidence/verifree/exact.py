"""VeriFree's gradients where everything can be enumerated: tiny models, all their reasonings, all their answers.

    x, three tokens ──► z, two tokens: 256 reasonings ──► y, two tokens: 256 answers, one of which is the reference y*

    J = Σ_z π(z|x)·p(z), p(z) = π(y*|x, z);   ∇J exactly, by autograd; and the variance of one sample without a baseline

Against these stand gradients of the real trainer on the first model, from groups drawn by its exact probabilities.
VeriFree's and the verifier's see the same reasonings; the verifier also draws an answer after each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import F32, I32, U8, Completion, Group, Role
from headrace_lab.training.gradient_statistics import Matrix, gram, interval, mean_z, variance
from headrace_lab.training.tiny_models import qwen3_config
from headrace_learner.algorithms.presets import algorithm
from headrace_learner.models.policy import Policy
from headrace_learner.training.trainer import Trainer

VOCAB, PROMPT = 16, (1, 2, 3)
MODELS = 8
BATCHES, GROUPS_A_BATCH, GROUP_SIZE, MAX_TOKENS = 200, 4, 8, 8
ESTIMATOR: dict[str, Any] = {
    **{"algorithm": "rloo", "batch_size": GROUPS_A_BATCH, "group_size": GROUP_SIZE, "max_staleness": 0},
    **{"max_tokens": MAX_TOKENS, "max_context": 16, "max_grad_norm": 1e9, "learning_rate": 1e-30},
}
"""Nothing is clipped, and no weight changes: the learning rate is below the resolution of float32."""
ARMS = ("verifree", "verifier", "no_answer_term")
"""The last is the control: VeriFree with weight 0 for answer tokens, which is biased."""
Gradients = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Enumerated:
    """The model's log-probabilities of everything that it can generate."""

    reasoning: npt.NDArray[np.float64]
    """[16, 16, 2] log-probabilities of the two tokens of each reasoning."""
    answer: npt.NDArray[np.float64]
    """[16, 16, 16, 16, 2] log-probabilities of the two tokens of each answer after each reasoning."""
    reference: tuple[int, int]
    """y*: the model's most likely answer over all reasonings, so that its likelihood is rarely negligible."""

    @property
    def chances(self) -> npt.NDArray[np.float64]:
        """[256] π(z|x)."""
        found = np.exp(self.reasoning.sum(-1)).ravel()
        return found / found.sum()

    @property
    def likelihoods(self) -> npt.NDArray[np.float64]:
        """[256] π(y*|x, z)."""
        return np.exp(self.answer[:, :, *self.reference].sum(-1)).ravel()


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """Exact figures for one sample, of each model; and the trainer's gradients compared with the first model's ∇J."""
    torch.set_num_threads(1)
    models = [tiny_model(1000 + MODELS * seed + number) for number in range(MODELS)]
    tables = [enumerate_all(model) for model in models]
    samples = [one_sample(model, table) for model, table in zip(models, tables, strict=True)]
    models[0].save_pretrained(folder)
    table, exact = tables[0], samples[0][0]
    trainer = Trainer(Policy(folder), algorithm("rloo"), Hyperparameters.model_validate({**ESTIMATOR, "seed": seed}))
    rng = np.random.default_rng(seed)
    found: dict[str, Gradients] = {arm: np.empty((BATCHES, len(exact)), np.float32) for arm in ARMS}
    for number in range(BATCHES):
        groups = [drawn_group(table, rng) for _ in range(GROUPS_A_BATCH)]
        for arm in ARMS:
            found[arm][number] = gradient(trainer, [group[arm] for group in groups])
    grams = {arm: gram(g) for arm, g in found.items()}
    return {
        "one_sample": [figures for _, figures in samples],
        "difference_to_exact_z": {arm: mean_z(gram(g - exact)) for arm, g in found.items()},
        "leave_one_out": {
            "variance_ratio": _ratio(grams["verifree"], grams["verifier"]),
            "variance_ratio_90": interval(_ratio, grams["verifree"], grams["verifier"], seed=seed),
        },
    }


def tiny_model(seed: int) -> Qwen3ForCausalLM:
    """A random model with weights so large that its answers depend on the reasoning."""
    torch.manual_seed(seed)
    shape = {"num_attention_heads": 1, "head_dim": 16, "tie_word_embeddings": False}
    config = qwen3_config(VOCAB, 16, context=16, initializer_range=0.35, **shape)
    return Qwen3ForCausalLM(config).eval()


@torch.no_grad()
def enumerate_all(model: Qwen3ForCausalLM) -> Enumerated:
    """Log-probabilities from one forward pass over all reasonings, each with all first tokens of an answer."""
    written = torch.cartesian_prod(*[torch.arange(VOCAB)] * 3)
    prompts = torch.tensor(PROMPT).expand(len(written), -1)
    every = torch.log_softmax(model(input_ids=torch.cat([prompts, written], 1)).logits.double(), -1)
    first, second, third, fourth = (
        every[:, len(PROMPT) - 1 + i].reshape(VOCAB, VOCAB, VOCAB, VOCAB).numpy() for i in range(4)
    )
    reasoning = np.stack([np.broadcast_to(first[0, 0, 0][:, None], (VOCAB, VOCAB)), second[:, 0, 0]], -1)
    answer = np.stack([np.broadcast_to(third[:, :, 0][..., None], fourth.shape), fourth], -1)
    whole = np.exp(reasoning.sum(-1))[..., None, None] * np.exp(answer.sum(-1))
    best = int(whole.sum((0, 1)).argmax())
    return Enumerated(reasoning, answer, (best // VOCAB, best % VOCAB))


def one_sample(model: Qwen3ForCausalLM, table: Enumerated) -> tuple[npt.NDArray[np.float64], dict[str, float]]:
    """(∇J; ratios of VeriFree's variance to the verifier's, for one sample without a baseline: total and z term)."""
    chances, p = table.chances, table.likelihoods
    of_z, of_y = scores(model, table)
    exact = (chances * p) @ (of_z + of_y)
    return exact, {
        "objective": float(chances @ p),
        "p2_over_p": float((chances @ p**2) / (chances @ p)),
        "variance_ratio": _exact_ratio(chances, p, of_z + of_y),
        "variance_ratio_of_reasoning": _exact_ratio(chances, p, of_z),
    }


def _exact_ratio(chances: npt.NDArray[np.float64], p: npt.NDArray[np.float64], of: npt.NDArray[np.float64]) -> float:
    """Var p·s over Var 1[y = y*]·s, s a score: both have the mean E p·s, and second moments E p²|s|² and E p|s|²."""
    squared_mean = float((((chances * p) @ of) ** 2).sum())
    sizes = (of**2).sum(1)
    return float((chances @ (p**2 * sizes) - squared_mean) / (chances @ (p * sizes) - squared_mean))


def scores(model: Qwen3ForCausalLM, table: Enumerated) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """∇log π(z|x) and ∇log π(y*|x, z), [256, parameters] each."""
    ids = torch.cat(
        [
            torch.tensor(PROMPT).expand(VOCAB**2, -1),
            torch.cartesian_prod(*[torch.arange(VOCAB)] * 2),
            torch.tensor(table.reference).expand(VOCAB**2, -1),
        ],
        1,
    )
    every = torch.log_softmax(model(input_ids=ids).logits[:, :-1], -1).gather(2, ids[:, 1:, None])[:, :, 0]
    of_z, of_y = every[:, -4:-2].sum(1), every[:, -2:].sum(1)
    return _each_gradient(model, of_z), _each_gradient(model, of_y)


def _each_gradient(model: Qwen3ForCausalLM, values: Tensor) -> npt.NDArray[np.float64]:
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True) for v in values]
    return np.stack([torch.cat([g.flatten() for g in row]).double().numpy() for row in rows])


def drawn_group(table: Enumerated, rng: np.random.Generator) -> dict[str, Group]:
    """One group for each arm, with the same reasonings."""
    drawn = rng.choice(VOCAB**2, GROUP_SIZE, p=table.chances)
    completions: dict[str, list[Completion]] = {arm: [] for arm in ARMS}
    for z in drawn:
        a, b = divmod(int(z), VOCAB)
        p = float(table.likelihoods[z])
        after = table.answer[a, b]
        chances = np.exp(after.sum(-1)).ravel()
        answer = divmod(int(rng.choice(VOCAB**2, p=chances / chances.sum())), VOCAB)
        logprobs = table.reasoning[a, b], after[table.reference]
        completions["verifree"].append(_completion((a, b), table.reference, *logprobs, p, Role.REFERENCE, p))
        completions["no_answer_term"].append(_completion((a, b), table.reference, *logprobs, p, Role.REFERENCE, 0.0))
        reward = float(answer == table.reference)
        completions["verifier"].append(
            _completion((a, b), answer, logprobs[0], after[answer], reward, Role.COMPLETION, 1.0)
        )
    prompt = np.array(PROMPT, I32)
    return {arm: Group(0, 1, 0, 0, prompt, tuple(found)) for arm, found in completions.items()}


def _completion(
    reasoning: tuple[int, int],
    answer: tuple[int, int],
    of_reasoning: npt.NDArray[np.float64],
    of_answer: npt.NDArray[np.float64],
    reward: float,
    role: Role,
    weight: float,
) -> Completion:
    return Completion(
        token_ids=np.array([*reasoning, *answer], I32),
        logprobs=np.concatenate([of_reasoning, of_answer]).astype(F32),
        versions=np.zeros(4, I32),
        roles=np.array([Role.COMPLETION] * 2 + [role] * 2, U8),
        loss_weights=np.array([1.0, 1.0, weight, weight], F32),
        finish_reason="stop",
        reward=reward,
    )


def gradient(trainer: Trainer, groups: Sequence[Group], version: int = 0) -> Gradients:
    """[parameters] gradient of J as the trainer estimates it: its loss is −J / max_tokens.

    If no group has a nonzero advantage, for example if no answer is right, the trainer computes nothing: this is 0.
    """
    trainer.policy.model.zero_grad(set_to_none=True)
    trainer.step(groups, version)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.policy.model.parameters()]
    return -MAX_TOKENS * torch.cat([g.flatten() for g in found]).numpy()


def _ratio(verifree: Matrix, verifier: Matrix) -> float:
    return variance(verifree) / variance(verifier)
