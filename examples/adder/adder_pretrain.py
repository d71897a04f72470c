"""Supervised training of a base model on demonstrations, from random weights.

Every prompt has the same number of tokens, so a batch needs padding on the right only. The loss is on completions
alone. `Recipe` holds the settings that another task with the same prompts changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .adder_problems import Problem, demonstration
from .adder_tokenizer import CONTEXT

PEAK_LEARNING_RATE = 3e-3
WARM_UP_STEPS = 30


@dataclass(frozen=True)
class Recipe:
    """Size of a base model and settings of its training. The defaults are the adder's."""

    write: Callable[[Problem, random.Random], str] = demonstration
    """One completion of the supervised corpus."""
    steps: int = 500
    batch: int = 128
    """Number of demonstrations drawn at a time: one step's, unless `step_tokens` is set."""
    step_tokens: int | None = None
    """If set, the drawn demonstrations are sorted by length and divided into steps of this many padded tokens: this
    saves padding, and gives every token the same weight."""
    context: int = CONTEXT
    intermediate_size: int = 256


ADDER = Recipe()
Pair = tuple[Problem, str]
"""A problem, and a completion of it."""


def build_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe = ADDER) -> Qwen3ForCausalLM:
    """A Qwen3 of 0.36M parameters. Heads are 32 wide: vLLM's CPU attention takes 32, 64, 96 and 128, but not 24."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=recipe.context,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        initializer_range=0.05,
    )
    return Qwen3ForCausalLM(config)


def draw(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem], recipe: Recipe, rng: random.Random
) -> Iterator[list[Pair]]:
    """Endless iterator over the steps' batches of problems and completions."""
    while True:
        pairs = [(problem, recipe.write(problem, rng)) for problem in rng.choices(problems, k=recipe.batch)]
        if recipe.step_tokens is None:
            yield pairs
        else:
            yield from deal(tokenizer, pairs, recipe.step_tokens, rng)


def deal(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], step_tokens: int, rng: random.Random
) -> list[list[Pair]]:
    """Batches of nearly `step_tokens` padded completion tokens, each of similar lengths, in random order."""
    lengths = [len(ids) for ids in tokenizer([text for _, text in pairs])["input_ids"]]
    batches: list[list[Pair]] = []
    longest = 0
    # longest first: the first completion of a batch determines the padded length of the others
    for index in sorted(range(len(pairs)), key=lengths.__getitem__, reverse=True):
        if not batches or (len(batches[-1]) + 1) * longest > step_tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(pairs[index])
    rng.shuffle(batches)
    return batches


def encode(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both [batch, tokens]; labels are -100 on prompts and padding."""
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.prompt}], tokenize=False, add_generation_prompt=True
        )
        for problem, _ in pairs
    ]
    texts = [prompt + text + tokenizer.eos_token for prompt, (_, text) in zip(prompts, pairs, strict=True)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    prompt_tokens = len(tokenizer(prompts[0], add_special_tokens=False)["input_ids"])
    labels[:, :prompt_tokens] = -100
    return batch["input_ids"], labels


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero at the last step."""
    return min((step + 1) / WARM_UP_STEPS, (steps - step) / (steps - WARM_UP_STEPS))


def pretrain(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem], seed: int, recipe: Recipe = ADDER
) -> Qwen3ForCausalLM:
    """The base model, in evaluation mode. Same seed and same torch build: same weights."""
    torch.manual_seed(seed)
    model = build_model(tokenizer, recipe).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe.steps))
    batches = draw(tokenizer, problems, recipe, random.Random(seed))
    for step in range(recipe.steps):
        ids, labels = encode(tokenizer, next(batches))
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == recipe.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model, with its tokenizer, as a Hugging Face folder."""
    # no temperature or cut-off in the generation settings: the base model is sampled from its own distribution
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
