"""A checkpoint of a job that trains adapters, exported and loaded by transformers: it says what the policy says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.job import Checkpoint, model_name
from headrace_lab.paths import ADDER
from headrace_lab.services import command_line
from headrace_lab.services.jobs import stored_job
from headrace_learner.models.policy import Policy

from .conftest import Served

PROMPT = "37 + 56 ="


def trained(folder: Path) -> Policy:
    """A policy with adapters that differ from the base model's by a few large steps."""
    torch.manual_seed(0)
    policy = Policy(folder, Hyperparameters(lora_rank=4))
    optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=0.05)
    tokens = torch.arange(3, 11)[None]
    for _ in range(3):
        optimizer.zero_grad()
        policy.model(tokens).logits.log_softmax(-1)[..., 5].mean().neg().backward()
        optimizer.step()
    return policy


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: torch.Tensor) -> list[int]:
    for _ in range(12):
        prompt = torch.cat([prompt, model(prompt).logits[:, -1:].argmax(-1)], dim=1)
    return prompt[0].tolist()


async def test_an_exported_checkpoint_says_what_the_policy_says(served: Served, tmp_path: Path) -> None:
    policy = trained(ADDER / "model")
    saved = served.data_dir / "step-3"
    policy.write_model(saved / "model")
    await served.jobs.create(job := stored_job())
    await served.jobs.add_checkpoint(job.id, Checkpoint("ftckpt_1", 5.0, 3, model_name(job, 3), str(saved), {}))
    target = tmp_path / "mine"
    command = ["checkpoints", "export", job.id, str(target), "--url", served.url]
    done = await asyncio.to_thread(command_line.headrace, *command)
    assert done.exit_code == 0, (done.output, done.exception)
    tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True)
    exported = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, local_files_only=True).eval()
    base = AutoModelForCausalLM.from_pretrained(ADDER / "model", dtype=torch.float32, local_files_only=True).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    assert greedy(exported, prompt) == greedy(policy.model, prompt)
    assert greedy(exported, prompt) != greedy(base, prompt)
    assert not [name for name in exported.state_dict() if "lora" in name]
