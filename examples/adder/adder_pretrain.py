"""Supervised training of the base model on demonstrations of both kinds, from random weights.

Every prompt has the same number of tokens, so a batch needs padding on the right only. The loss is on completions
alone.
"""

from __future__ import annotations

import random

import torch
from adder_problems import Problem, demonstration
from adder_tokenizer import CONTEXT
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

STEPS = 500
BATCH = 128  # demonstrations a step
PEAK_LEARNING_RATE = 3e-3
WARM_UP_STEPS = 30


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of 0.36M parameters. Heads are 32 wide: vLLM's CPU attention takes 32, 64, 96 and 128, but not 24."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        initializer_range=0.05,
    )
    return Qwen3ForCausalLM(config)


def encode(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem], rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both [batch, tokens]; labels are -100 on prompts and padding."""
    prompts, completions = [], []
    for problem in problems:
        messages = [{"role": "user", "content": problem.prompt}]
        prompts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        completions.append(demonstration(problem, rng) + tokenizer.eos_token)
    texts = [prompt + text for prompt, text in zip(prompts, completions, strict=True)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    prompt_tokens = len(tokenizer(prompts[0], add_special_tokens=False)["input_ids"])
    labels[:, :prompt_tokens] = -100
    return batch["input_ids"], labels


def learning_rate_factor(step: int) -> float:
    """Linear warm-up, then linear decay to nothing at the last step."""
    return min((step + 1) / WARM_UP_STEPS, (STEPS - step) / (STEPS - WARM_UP_STEPS))


def pretrain(tokenizer: PreTrainedTokenizerFast, problems: list[Problem], seed: int) -> Qwen3ForCausalLM:
    """The base model, in evaluation mode. Same seed and same torch build: same weights."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = build_model(tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    for step in range(STEPS):
        ids, labels = encode(tokenizer, rng.choices(problems, k=BATCH), rng)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == STEPS - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()
