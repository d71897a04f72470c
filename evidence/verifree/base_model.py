"""The careless adder: the demo's model, taught to write a guess in place of the answer more often than not.

With the adder itself, the answer follows from the reasoning, and there is little left to take an expectation over. Here
a right working is followed by the right answer in half of the samples, as with a base model that knows neither form nor
care; greedy answers stay what they were.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from examples.adder import adder_pretrain as pretrain
from examples.adder import adder_problems as problems
from headrace_lab.paths import ADDER

GUESSES = 0.5
"""Fraction of the answers that are random numbers."""
STEPS, BATCH, LEARNING_RATE = 60, 128, 5e-4


def careless_adder(folder: Path, seed: int) -> Path:
    """Train the model and write it to `folder`; takes a minute on one thread.

    The same seed and torch build give the same weights.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(ADDER / "model")
    model = Qwen3ForCausalLM.from_pretrained(ADDER / "model", dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    questions, _ = problems.split_problems(0)
    for _ in range(STEPS):
        drawn = [(problem, _careless(problem, rng)) for problem in rng.choices(questions, k=BATCH)]
        ids, labels = pretrain.encode(tokenizer, drawn)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    pretrain.save(model.eval(), tokenizer, folder)
    return folder


def _careless(problem: Any, rng: random.Random) -> str:
    written = problems.demonstration(problem, rng)
    if rng.random() >= GUESSES:
        return written
    return str(problems.completion(written.partition(" <answer")[0], str(rng.randint(20, 198))))
