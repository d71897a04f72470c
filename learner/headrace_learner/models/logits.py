"""Whether a model's logits are what the learner makes of its hidden states: compared once, when the model is loaded.

    the model's own forward pass ─► logits ────────────────────────────────────────────┐
    base model ─► last hidden states ─► head (one matrix product) ─► soft cap, if any ─┴─► equal, or refused

The learner never holds full logits (`chunked_logprobs`), so it cannot ask the model for them while it trains. A model
whose logits are made in another way would be trained on other log-probabilities than its own, silently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headrace_core.errors import InvalidRequest

_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configurations call it: Gemma 2 to 4, RecurrentGemma, xLSTM."""
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
"""Named in the error, where they are the cause."""
_TOLERANCE = 1e-3
"""Nats, of log-probabilities in float32: rounding stays far below, every other formula is far above."""
_ROUNDINGS = 2
"""Two formulas may differ by this many roundings of the largest logit: in bfloat16 that exceeds the tolerance."""
_TOKENS = 8
_FIRST = 4
"""Below it many vocabularies have padding and ends of text, whose embeddings may be zero."""


def soft_cap(config: Any) -> float | None:
    """c where logits pass through c·tanh(logits / c); None where they do not."""
    text = config.get_text_config()
    found = [value for name in _SOFT_CAPS if (value := getattr(text, name, None))]
    return float(found[0]) if found else None


@torch.no_grad()
def check(model: Any, name: str) -> None:
    """Raises `InvalidRequest`, which names what stands between, for a model whose logits are made in another way."""
    head = model.get_output_embeddings()
    if head is None:
        raise InvalidRequest(f"cannot train {name}: {type(model).__name__} has no matrix that makes logits")
    vocabulary, device = len(head.weight), head.weight.device
    ids = (torch.arange(_FIRST, _FIRST + _TOKENS, device=device) % vocabulary)[None]
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    made = _made(model, ids)
    if own.shape != made.shape:
        raise InvalidRequest(f"cannot train {name}: it has {own.shape[1]} logits, and its head {made.shape[1]} rows")
    apart = float((torch.log_softmax(own, -1) - torch.log_softmax(made, -1)).abs().max())
    rounding = _ROUNDINGS * torch.finfo(head.weight.dtype).eps * float(made.abs().max())
    if not apart <= max(_TOLERANCE, rounding):
        raise InvalidRequest(
            f"cannot train {name}: its logits are more than one matrix product of its last hidden states, so that "
            f"log-probabilities would be off by up to {apart:.2g} nats. {_cause(model)}"
        )


def _made(model: Any, ids: Tensor) -> Tensor:
    """[T, V] as `chunked_logprobs.chosen_logprobs` makes them."""
    head, cap = model.get_output_embeddings(), soft_cap(model.config)
    logits: Tensor = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    return (logits if cap is None else cap * torch.tanh(logits / cap)).float()


def _cause(model: Any) -> str:
    text = model.config.get_text_config()
    settings = [f"{n} = {v}" for n in (*_SCALES, *_SOFT_CAPS) if (v := getattr(text, n, None)) not in (None, 1, 1.0)]
    if settings:
        return f"Its configuration has {', '.join(settings)}."
    known = (model.base_model, model.get_output_embeddings())
    between = [
        f"{n} ({type(child).__name__})" for n, child in model.named_children() if all(child is not k for k in known)
    ]
    if between:
        return f"Beside base model and head it has {', '.join(between)}."
    return f"{type(model).__name__} computes them in a way of its own."
