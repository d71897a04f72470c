"""Bytes on the device of one rank of the learner, part by part, where they are most.

    always there     weights · gradients · optimizer · reference · critic
    for a moment     head     every saved activation, the logits of the head's chunks, the head's gradient
      (the most      layers   every saved activation, what one layer's backward pass adds, its gathered weights
      counts)        end      gradients of embeddings and head, before they are summed
                     update   what a low-rank optimizer computes a subspace with

Gradients count from the first micro-batch on, because a second one finds them there. Saved activations are those of
transformers' layers with torch's fused attention, whose scores are never stored. In bfloat16 a norm saves its input in
float32. `tests/learner/test_memory_plan.py` holds the sum against steps that were measured on a CPU.

Not counted: what the allocator loses to fragments, and cuBLAS's and NCCL's workspaces (`devices.RUNTIME`).
"""

from __future__ import annotations

import math

from ..config.algorithm_presets import ALGORITHMS
from ..config.hyperparameters import Hyperparameters
from .model_shape import Counted, LayerParameters, ModelShape, Shape, numbers

FLOAT32 = 4
LOGITS_AT_ONCE = 2**24
"""Logits of one chunk of the head; the learner's `chunked_logprobs` has the same number (a test compares them)."""
CHUNKS_KEPT = 4
"""Chunks that stay from the forward to the backward pass; as there."""
_GATHERED_LAYERS = 3
"""FSDP2 has the weights of the layer that computes, of the next one, and the buffer that this is copied out of."""
_INDEX = 8
"""Bytes of a token's or expert's number."""

Parts = dict[str, int]
"""Bytes by part."""


def micro_batch_tokens(settings: Hyperparameters) -> int:
    """Tokens of the largest micro-batch, padding included: a sequence longer than the budget has one of its own."""
    completions = -(-settings.batch_size // settings.minibatches) * (settings.explored_group_size + 1)  # one is greedy
    return min(max(settings.token_budget, settings.max_context), completions * settings.max_context)


def learner_parts(model: ModelShape, settings: Hyperparameters, compute: int) -> Parts:
    """Of one rank, where passes compute in numbers of `compute` bytes (2: bfloat16, 4: float32)."""
    moments = _moments(model, settings, compute)
    return _resident(model, settings, compute) | max(moments, key=lambda parts: sum(parts.values()))


def state_bytes(model: ModelShape, settings: Hyperparameters) -> int:
    """What a rank's snapshots hold: trained weights and optimizer, of the policy and the critic."""
    parts = _resident(model, settings, FLOAT32)
    frozen = numbers(model.parameters(), settings.learner_ranks) * FLOAT32 if settings.lora_rank is not None else 0
    return parts["weights"] - frozen + parts["optimizer"] + _critic(model, settings, gradients=0)


def _sharded(settings: Hyperparameters, compute: int) -> bool:
    """Whether FSDP gathers and casts weights: one process in float32 does without."""
    return settings.learner_ranks > 1 or compute != FLOAT32


# ── always there ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _resident(model: ModelShape, settings: Hyperparameters, compute: int) -> Parts:
    ranks = settings.learner_ranks
    if settings.lora_rank is None:
        trained, frozen = model.parameters(), 0
    else:
        trained, frozen = model.adapters(settings.lora_rank), numbers(model.parameters(), ranks) * compute
    held = numbers(trained, ranks) * FLOAT32
    needs_reference = settings.kl_coefficient > 0 and settings.lora_rank is None
    return {
        "weights": held + frozen,
        "gradients": held,
        "optimizer": _optimizer(trained, _in_subspaces(model, settings), settings),
        "reference": numbers(model.parameters(), ranks) * compute if needs_reference else 0,
        "critic": _critic(model, settings, gradients=1),
    }


def _critic(model: ModelShape, settings: Hyperparameters, gradients: int) -> int:
    """A second model, all of it trained, with one number for a head."""
    if not ALGORITHMS[settings.algorithm].trains_critic:
        return 0
    shapes = [*model.base(), ((1, model.hidden), 1), ((1,), 1)]
    held = numbers(shapes, settings.learner_ranks) * FLOAT32
    return held * (1 + gradients) + _optimizer(shapes, _in_subspaces(model, settings), settings)


def _in_subspaces(model: ModelShape, settings: Hyperparameters) -> list[tuple[Shape, int]]:
    """Matrices of the layers that a low-rank optimizer updates within subspaces."""
    if settings.optimizer == "adamw":
        return []
    rank = settings.optimizer_rank
    return [(shape, n) for shape, n in model.in_layers() if len(shape) == 2 and min(shape) >= rank]


def _optimizer(trained: Counted, low_rank: list[tuple[Shape, int]], settings: Hyperparameters) -> int:
    """Two moments of each number; for m × n matrices within subspaces, m ≤ n, r × n each, and what spans them."""
    ranks, rank = settings.learner_ranks, settings.optimizer_rank
    found = 2 * (numbers(trained, ranks) - numbers(low_rank))
    for shape, count in low_rank:
        m, n = sorted(shape)
        found += count * (2 * rank * n + (rank if settings.optimizer == "dct_adamw" else m * rank))
    if settings.optimizer == "dct_adamw":
        found += sum(m * m for m in {min(shape) for shape, _ in low_rank})
    return found * FLOAT32


# ── for a moment ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _moments(model: ModelShape, settings: Hyperparameters, compute: int) -> list[Parts]:
    tokens = micro_batch_tokens(settings)
    saved = sum(count * saved_by_layer(model, layer, compute, settings.lora_rank) for layer, count in model.layers)
    after_layers = (
        _norm(model.hidden, compute, False) + 3 * compute * model.hidden
    )  # its result, chosen, their gradient
    worst = max(saved_by_layer(model, layer, compute, settings.lora_rank) for layer, _ in model.layers)
    adding = max(_added_by_backward(model, layer, compute) for layer, _ in model.layers)
    recomputed = 0
    if settings.gradient_checkpointing:
        saved, recomputed = model.depth * compute * model.hidden, worst
    head = model.vocabulary * model.hidden
    trains_head = settings.lora_rank is None
    largest = model.largest_layer
    sharded = _sharded(settings, compute)
    root = model.outside_layers() * compute if sharded else 0
    gathered = root + (_GATHERED_LAYERS * largest.numbers * compute if sharded else 0)
    # of one layer, all at once where they are summed over ranks; else one matrix after the other
    gradients = largest.numbers * (compute + FLOAT32) if sharded else max(map(math.prod, largest.parameters)) * FLOAT32
    outside = (head if model.tied else 2 * head) * (compute + FLOAT32) if sharded else 2 * head * FLOAT32
    of_head = head * (FLOAT32 + (compute if sharded else 0)) if trains_head else 0
    return [
        {
            "activations": tokens * (saved + after_layers),
            "logits": _logits(model, tokens, compute),
            "gathered": gathered + of_head,
        },
        {
            "activations": tokens * (saved + recomputed + adding),
            "logits": 0,
            "gathered": gathered + (gradients if trains_head else 0) + (head * compute if trains_head else 0),
        },
        {"activations": tokens * worst, "logits": 0, "gathered": root + (outside if trains_head else 0)},
        {"activations": 0, "logits": 0, "gathered": _subspace_work(model, settings)},
    ]


def saved_by_layer(model: ModelShape, layer: LayerParameters, compute: int, lora_rank: int | None = None) -> int:
    """Bytes for each token that a layer's forward pass leaves for its backward pass.

    With adapters, frozen norms and experts save less: what the gradient of their own weights would need.
    """
    d, queries, keys = model.hidden, model.heads * model.head_dim, model.kv_heads * model.head_dim
    frozen = lora_rank is not None
    norms = 2 * (_norm(d, compute, frozen) + compute * d)  # and the results, which linear layers save
    if model.head_norms:
        norms += _norm(queries, compute, frozen) + _norm(keys, compute, frozen)
        norms += FLOAT32 * (model.heads + model.kv_heads)
    attention = compute * 2 * (queries + keys) + FLOAT32 * model.heads
    found = norms + attention + compute * (lora_rank or 0) * len(layer.linears)
    f, chosen = layer.intermediate, layer.experts_per_token
    if not layer.experts:
        return found + compute * 4 * f
    routing = 2 * FLOAT32 * layer.experts + 6 * _INDEX * chosen
    return found + routing + compute * chosen * (d + 3 * f if frozen else 2 * d + 4 * f)


def _norm(width: int, compute: int, frozen: bool) -> int:
    """An RMS norm saves its input in float32, that divided by its norm where its weights are trained, and the norm."""
    return (FLOAT32 + (0 if frozen else compute)) * width + FLOAT32


def _added_by_backward(model: ModelShape, layer: LayerParameters, compute: int) -> int:
    """Bytes for each token of the gradients that are there at once: of the residual stream, and within the MLP."""
    f, d, chosen = layer.intermediate, model.hidden, max(1, layer.experts_per_token)
    return compute * (chosen * (3 * f + (2 * d if layer.experts else 0)) + 2 * d)


def _logits(model: ModelShape, tokens: int, compute: int) -> int:
    """Of the chunks that are kept, and one more; in bfloat16 its gradient beside it."""
    rows = max(1, LOGITS_AT_ONCE // model.vocabulary)
    wide = min(tokens, (CHUNKS_KEPT + 1) * rows) * FLOAT32
    cast = min(tokens, rows) * compute if compute != FLOAT32 else 0
    return model.vocabulary * (wide + cast)


def _subspace_work(model: ModelShape, settings: Hyperparameters) -> int:
    """The gradient scaled, its square, eigenvectors with their workspace, and the update, of one matrix."""
    sizes = [sorted(shape) for shape, _ in _in_subspaces(model, settings)]
    return max((FLOAT32 * (3 * m * n + 4 * m * m) for m, n in sizes), default=0)
