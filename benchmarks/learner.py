"""Speed and memory of a training step, compared with a straightforward implementation and the machine's limit.

    ours     `Trainer.step`, GRPO: table, micro-batches by length within a token budget, head on contributing tokens in
             chunks, AdamW
    plain    the same sequences with the Hugging Face model in the usual way: micro-batches of 8 in order of arrival,
             padded to the longest with an attention mask, full logits, log-softmax, gather, AdamW
    limit    float32 matrix products of 2048 × 2048, in FLOP/s

The model has SmolLM2-135M's shape. Completion lengths have a long tail (lognormal, cut off). The useful work of a step
is 6 FLOP per parameter and token, for the body over all input tokens and for the head over contributing tokens only;
padding, attention and recomputation do not count. Both run in alternating rounds in one process.

Memory is measured for the loss alone (hidden states in, gradients of hidden states and head out), as the peak of a
separate process minus what it held before.

    python -m benchmarks.learner [--seed N] [--out FILE] [--rounds N] [--sequences N] [--token-budget N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Group, sampled_completion
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.training.tiny_models import make_model, smollm2_config
from headrace_learner.algorithms.presets import algorithm
from headrace_learner.distributed.torch_thread import keep_freed_memory
from headrace_learner.models.chunked_logprobs import chosen_logprobs
from headrace_learner.models.policy import Policy
from headrace_learner.training.trainer import Trainer

# These limits were fixed before the first run.
SPEED_RATIO = 1.5
"""PASS: our step has at least this multiple of the plain step's tokens/s."""
LIMIT_SHARE = 0.60
"""PASS: our useful FLOP/s are at least this fraction of the machine's limit."""
MEMORY_RATIO = 0.25
"""PASS: peak memory of our loss is at most this fraction of the plain one's."""

PROMPT, MEDIAN, SIGMA, MAX_LENGTH = 32, 64, 1.0, 768
"""In tokens: length of each prompt; lognormal completion lengths: median, deviation of the logarithm, cut-off."""
GROUP_SIZE, PLAIN_ROWS = 8, 8
LOSS_TOKENS = 4096


@dataclass(frozen=True)
class Round:
    """Seconds of one step of each implementation, on the same sequences."""

    ours: float
    plain: float


def groups(sequences: int, vocabulary: int, seed: int) -> list[Group]:
    """Groups of random tokens; their lengths depend on the seed alone."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(sequences // GROUP_SIZE):
        lengths = np.clip(rng.lognormal(np.log(MEDIAN), SIGMA, GROUP_SIZE).astype(int), 4, MAX_LENGTH)
        completions = tuple(
            sampled_completion(
                rng.integers(0, vocabulary, n), np.full(n, -10.8), np.zeros(n), "stop", float(rng.integers(0, 2))
            )
            for n in lengths
        )
        prompt = rng.integers(0, vocabulary, PROMPT).astype(np.int32)
        made.append(Group(number, 1, number, 0, prompt, completions))
    return made


class Plain:
    """A straightforward training step with the Hugging Face model."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)

    def step(self, batch: Sequence[Group]) -> None:
        """One update with advantages of ±1 by reward: computing real advantages would not take measurable time."""
        rows = [(g.prompt_ids, c) for g in batch for c in g.completions]
        tokens = sum(len(c) for _, c in rows)
        self.optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(rows), PLAIN_ROWS):
            (self._loss(rows[start : start + PLAIN_ROWS]) / tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def _loss(self, rows: Sequence[tuple[Any, Any]]) -> Tensor:
        width = max(len(prompt) + len(c) for prompt, c in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        attended, weights = torch.zeros_like(ids), torch.zeros(len(rows), width)
        for row, (prompt, c) in enumerate(rows):
            end = len(prompt) + len(c)
            ids[row, :end] = torch.from_numpy(np.concatenate([prompt, c.token_ids]))
            attended[row, :end] = 1
            weights[row, len(prompt) : end] = 2 * c.reward - 1
        logits = self.model(input_ids=ids, attention_mask=attended).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
        return -(logprobs * weights[:, 1:]).sum()


def matmul_limit() -> float:
    """FLOP/s of a float32 matrix product of 2048 × 2048, best of 12."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    seconds = min(timed(lambda: a @ b) for _ in range(12))
    return float(2 * 2048**3 / seconds)


def timed(work: Callable[[], object]) -> float:
    """Do the work; returns the seconds it took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def useful_flop(batch: Sequence[Group], policy: Policy) -> float:
    """Useful FLOP of one step, as defined above."""
    head = policy.model.get_output_embeddings().weight.numel()
    body = policy.parameters - head
    contributing = sum(len(c) for g in batch for c in g.completions)
    inputs = sum(len(g.prompt_ids) + len(c) - 1 for g in batch for c in g.completions)
    return 6.0 * (body * inputs + head * contributing)


def measure_speed(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Alternating rounds of both steps, after one warm-up step of each."""
    settings = Hyperparameters(algorithm="grpo", token_budget=options.token_budget, learning_rate=1e-6)
    policy = Policy(folder, settings)
    trainer, plain = Trainer(policy, algorithm("grpo"), settings), Plain(folder)
    vocabulary = policy.model.config.vocab_size
    small = groups(GROUP_SIZE, vocabulary, options.seed + 1)
    trainer.step(small, 0)
    plain.step(small)
    batch = groups(options.sequences, vocabulary, options.seed)
    rounds, limits = [], [matmul_limit()]
    for number in range(options.rounds):
        rounds.append(Round(timed(lambda: trainer.step(batch, 0)), timed(lambda: plain.step(batch))))
        limits.append(matmul_limit())
        print(f"round {number + 1}: ours {rounds[-1].ours:.1f} s, plain {rounds[-1].plain:.1f} s", flush=True)
    tokens = sum(len(c) for g in batch for c in g.completions)
    ours = statistics.median(r.ours for r in rounds)
    return {
        "tokens": tokens,
        "sequences": options.sequences,
        "longest": max(len(c) for g in batch for c in g.completions),
        "rounds": [asdict(r) for r in rounds],
        "ours_tokens_per_second": tokens / ours,
        "plain_tokens_per_second": tokens / statistics.median(r.plain for r in rounds),
        "ratio": statistics.median(r.plain / r.ours for r in rounds),
        "useful_flop_per_second": useful_flop(batch, policy) / ours,
        "matmul_flop_per_second": statistics.median(limits),
    }


# ── memory: this file is run again, in a process per loss ────────────────────────────────────────────────────────────


def loss_memory(kind: str) -> int:
    """Start a process that measures `memory_of(kind)`; returns the bytes."""
    command = [sys.executable, __file__, "--memory-of", kind]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return int(ended.stdout.split()[-1])


def memory_of(kind: str) -> int:
    """Peak bytes of one loss and its gradients in this process, beyond what it held before."""
    torch.set_num_threads(1)
    config = smollm2_config()
    head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    hidden_ND = torch.randn(LOSS_TOKENS, config.hidden_size, requires_grad=True)
    targets_N = torch.randint(0, config.vocab_size, (LOSS_TOKENS,))
    before = peak_bytes()
    if kind == "ours":
        logprobs_N = chosen_logprobs(head, hidden_ND, targets_N, 1.0)
    else:
        logprobs_N = head(hidden_ND).log_softmax(-1).gather(1, targets_N[:, None])[:, 0]
    logprobs_N.mean().backward()
    return peak_bytes() - before


def peak_bytes() -> int:
    """Largest resident size of this process so far, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def main() -> None:
    parser = arguments("learner", __doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--token-budget", type=int, default=1024)
    parser.add_argument("--memory-of", choices=("ours", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of is not None:
        print(memory_of(options.memory_of))
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    keep_freed_memory()  # as a learner does; the plain step benefits from it, too
    memory = {kind: loss_memory(kind) for kind in ("ours", "plain")}
    with tempfile.TemporaryDirectory(prefix="headrace-learner-") as folder:
        speed = measure_speed(make_model(smollm2_config(), options.seed, Path(folder)), options)
    share = speed["useful_flop_per_second"] / speed["matmul_flop_per_second"]
    saved = memory["ours"] / memory["plain"]
    figures = (
        f"{speed['ours_tokens_per_second']:.0f} tokens/s = {speed['ratio']:.2f} x plain (limit {SPEED_RATIO:g} x), "
        f"{share:.0%} of {speed['matmul_flop_per_second'] / 1e9:.0f} GFLOP/s (limit {LIMIT_SHARE:.0%}), "
        f"loss memory {memory['ours'] / 2**20:.0f} MiB = {saved:.0%} of plain (limit {MEMORY_RATIO:.0%})"
    )
    passed = speed["ratio"] >= SPEED_RATIO and share >= LIMIT_SHARE and saved <= MEMORY_RATIO
    report("learner", passed, figures, {"speed": speed, "limit_share": share, "loss_memory": memory}, options)


if __name__ == "__main__":
    main()
