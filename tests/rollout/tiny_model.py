"""A tiny random Qwen3 model, as a folder, and what a plain torch forward says about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import Qwen3ForCausalLM

from headrace_lab.training.tiny_models import qwen3_config

VOCABULARY = 64
EOS = 1
CONTEXT = 320


def tiny_model(seed: int, context: int = CONTEXT) -> Qwen3ForCausalLM:
    """2 layers, width 64, heads of 32 (vLLM's CPU attention takes that), tied embeddings; weights of `seed`."""
    torch.manual_seed(seed)
    special = {"eos_token_id": EOS, "bos_token_id": 0}
    config = qwen3_config(VOCABULARY, 64, context=context + 1, initializer_range=0.25, **special)
    return Qwen3ForCausalLM(config).float().eval()


def save(model: Qwen3ForCausalLM, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def next_token_logprobs(
    model: Qwen3ForCausalLM, tokens: npt.NDArray[np.int32], temperature: float = 1.0, top_p: float = 1.0
) -> torch.Tensor:
    """[len(tokens), VOCABULARY]: row i is the distribution of token i + 1, tempered, cut to the nucleus of `top_p`."""
    logits = model(torch.as_tensor(tokens, dtype=torch.long)[None]).logits[0]
    return processed_logprobs(logits, temperature, top_p)


def processed_logprobs(logits: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    """[..., VOCABULARY] natural log; -inf outside the smallest set of likeliest tokens with probability ≥ top_p."""
    logprobs = (logits / temperature).log_softmax(-1)
    if top_p == 1.0:
        return logprobs  # summed in float32, the probabilities before an unlikely token reach 1
    ordered, order = logprobs.sort(descending=True, dim=-1)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    keep = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, order, before < top_p)
    return logprobs.masked_fill(~keep, -torch.inf).log_softmax(-1)


def of_tokens(logprobs: torch.Tensor, tokens: npt.NDArray[np.int32], start: int) -> npt.NDArray[np.float32]:
    """The log-probabilities of tokens[start:], picked from `next_token_logprobs(tokens)`."""
    targets = torch.as_tensor(tokens[start:], dtype=torch.long)
    picked: npt.NDArray[np.float32] = logprobs[start - 1 : -1].gather(-1, targets[:, None])[:, 0].numpy()
    return picked
