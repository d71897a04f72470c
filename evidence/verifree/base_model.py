"""The careless adder: the demo's model, taught to write a guess in place of the answer more often than not.

With the adder itself, the answer follows from the reasoning, and there is little left to take an expectation over. Here
a right working is followed by the right answer in half of the samples, as with a base model that knows neither form nor
care; greedy answers stay what they were.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

ADDER = Path(__file__).resolve().parents[1] / "examples" / "adder"
sys.path.append(str(ADDER))

from adder_pretrain import encode, save  # noqa: E402
from adder_problems import Problem, completion, demonstration, split_problems  # noqa: E402

GUESSES = 0.5
"""Share of the answers that are a number by chance."""
STEPS, BATCH, LEARNING_RATE = 60, 128, 5e-4


def careless_adder(folder: Path, seed: int) -> Path:
    """Train it and write it to `folder`; a minute on one thread. Same seed and same torch build: same weights."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(ADDER / "model")
    model = Qwen3ForCausalLM.from_pretrained(ADDER / "model", dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    problems, _ = split_problems(0)
    for _ in range(STEPS):
        drawn = [(problem, _careless(problem, rng)) for problem in rng.choices(problems, k=BATCH)]
        ids, labels = encode(tokenizer, drawn)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save(model.eval(), tokenizer, folder)
    return folder


def _careless(problem: Problem, rng: random.Random) -> str:
    written = demonstration(problem, rng)
    if rng.random() >= GUESSES:
        return written
    return completion(written.partition(" <answer")[0], str(rng.randint(20, 198)))
