"""The shapes of a causal language model's parameters, from its config.json alone: no torch, nothing is built.

Known are the families in `_FAMILIES`; `model_shape` gives None for any other, as a guess would be worse than no plan.
A tensor's first dimension matters: it is the one that FSDP cuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

_MAX_LAYERS = 10_000
"""A config.json with more is damaged."""

Shape = tuple[int, ...]
Counted = Iterable[tuple[Shape, int]]
"""Shapes, and how many parameters of a model have each."""


@dataclass(frozen=True, slots=True)
class LayerParameters:
    """One transformer layer."""

    parameters: tuple[Shape, ...]
    """Shape of each parameter."""
    linears: tuple[tuple[int, int], ...]
    """(outputs, inputs) of each linear layer: those that adapters are attached to. Experts and routers are none."""
    intermediate: int
    """Width of the MLP, or of one expert."""
    experts: int = 0
    """0: a dense MLP."""
    experts_per_token: int = 0

    @property
    def numbers(self) -> int:
        """How many numbers its parameters hold."""
        return sum(map(math.prod, self.parameters))


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A whole model. `head_norms`: queries and keys are normalised per head, as in Qwen3."""

    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    head_norms: bool
    tied: bool
    layers: tuple[tuple[LayerParameters, int], ...]
    """(layer, how many like it)."""

    @property
    def depth(self) -> int:
        """Number of layers."""
        return sum(count for _, count in self.layers)

    @property
    def largest_layer(self) -> LayerParameters:
        """The layer with the most numbers."""
        return max((layer for layer, _ in self.layers), key=lambda layer: layer.numbers)

    def base(self) -> Counted:
        """Every parameter but those of the head: embeddings, layers, last norm."""
        return [((self.vocabulary, self.hidden), 1), *self.in_layers(), ((self.hidden,), 1)]

    def parameters(self) -> Counted:
        """Every parameter; a tied head is the embeddings, counted once."""
        return [*self.base(), ((self.vocabulary, self.hidden), 0 if self.tied else 1)]

    def divisible_by(self, devices: int) -> bool:
        """Whether tensor parallelism can divide the heads among `devices`, each of which has at least one."""
        keys = self.kv_heads
        return self.heads % devices == 0 and (keys % devices == 0 or devices % keys == 0)

    def outside_layers(self) -> int:
        """Numbers of embeddings, head and last norm."""
        return numbers(self.parameters()) - numbers(self.in_layers())

    def in_layers(self) -> Counted:
        """Every parameter of the layers."""
        return [(shape, count) for layer, count in self.layers for shape in layer.parameters]

    def adapters(self, rank: int) -> Counted:
        """Both factors of each adapter of that rank."""
        linears = [(linear, count) for layer, count in self.layers for linear in layer.linears]
        return [*(((rank, i), n) for (_, i), n in linears), *(((o, rank), n) for (o, _), n in linears)]


def numbers(shapes: Counted, ranks: int = 1) -> int:
    """How many numbers one rank of `ranks` holds at most: each first dimension is cut into equal parts, rounded up."""
    return sum(-(-shape[0] // ranks) * math.prod(shape[1:]) * count for shape, count in shapes)


def model_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape of the model with that config.json; None for a family that is not known, or where sizes are missing."""
    family = _FAMILIES.get(str(config.get("model_type")))
    try:
        return None if family is None else _of_family(config, family)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a config.json that lacks a size, or has a text there
        return None


# ── families ─────────────────────────────────────────────────────────────────────────────────────────────────────────

Biases = Callable[[Mapping[str, Any]], bool]


def _never(config: Mapping[str, Any]) -> bool:
    return False


def _always(config: Mapping[str, Any]) -> bool:
    return True


def _if_set(name: str) -> Biases:
    return lambda config: bool(config.get(name, False))


@dataclass(frozen=True, slots=True)
class _Family:
    """What config.json leaves to the class of a model."""

    qkv_bias: Biases = _never
    output_bias: Biases = _never
    mlp_bias: Biases = _never
    head_norms: bool = False
    kv_heads: int | None = None
    """Default of num_key_value_heads; None: as many as there are heads."""
    head_dim: int | None = None
    """Default of head_dim; None: hidden_size / num_attention_heads."""
    expert_width: str | None = None
    """The setting with the width of an expert; None: no layer has experts."""


_FAMILIES = {
    "llama": _Family(_if_set("attention_bias"), _if_set("attention_bias"), _if_set("mlp_bias")),
    "mistral": _Family(kv_heads=8),
    "qwen2": _Family(qkv_bias=_always, kv_heads=32),
    "qwen3": _Family(_if_set("attention_bias"), _if_set("attention_bias"), head_norms=True, kv_heads=32, head_dim=128),
    "qwen3_moe": _Family(
        _if_set("attention_bias"),
        _if_set("attention_bias"),
        head_norms=True,
        kv_heads=4,
        expert_width="moe_intermediate_size",
    ),
    "mixtral": _Family(kv_heads=8, expert_width="intermediate_size"),
}


def _of_family(config: Mapping[str, Any], family: _Family) -> ModelShape:
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    layers: dict[bool, int] = {}
    if int(config["num_hidden_layers"]) > _MAX_LAYERS:
        raise ValueError("more layers than a model has")
    for number in range(int(config["num_hidden_layers"])):
        sparse = family.expert_width is not None and _is_sparse(config, number)
        layers[sparse] = layers.get(sparse, 0) + 1
    found = ModelShape(
        vocabulary=int(config["vocab_size"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or family.kv_heads or heads),
        head_dim=int(config.get("head_dim") or family.head_dim or hidden // heads),
        head_norms=family.head_norms,
        tied=bool(config.get("tie_word_embeddings", False)),
        layers=(),
    )
    of_each = tuple((_layer(config, family, found, sparse), count) for sparse, count in layers.items())
    sizes = (found.vocabulary, found.hidden, found.heads, found.kv_heads, found.head_dim, len(of_each))
    if min(sizes) < 1 or any(min(map(min, layer.parameters)) < 1 for layer, _ in of_each):
        raise ValueError("a size below 1")
    return replace(found, layers=of_each)


def _experts(config: Mapping[str, Any]) -> int:
    """Of one layer. transformers 5 writes the second name, and reads both."""
    return int(config["num_experts"] if "num_experts" in config else config["num_local_experts"])


def _is_sparse(config: Mapping[str, Any], number: int) -> bool:
    """Whether that layer has experts: all but those that config.json excepts (Qwen3-MoE)."""
    every = int(config.get("decoder_sparse_step", 1))
    return _experts(config) > 0 and (number + 1) % every == 0 and number not in (config.get("mlp_only_layers") or ())


def _layer(config: Mapping[str, Any], family: _Family, model: ModelShape, sparse: bool) -> LayerParameters:
    d, queries, keys = model.hidden, model.heads * model.head_dim, model.kv_heads * model.head_dim
    linears = [(queries, d), (keys, d), (keys, d), (d, queries)]
    biases = [*([queries, keys, keys] if family.qkv_bias(config) else []), *([d] if family.output_bias(config) else [])]
    norms = [d, d, *([model.head_dim] * 2 if model.head_norms else [])]
    if sparse and family.expert_width is not None:
        experts, width = _experts(config), int(config[family.expert_width])
        per_token = int(config["num_experts_per_tok"])
        inside: list[Shape] = [(experts, d), (experts, 2 * width, d), (experts, d, width)]
    else:
        experts, width, per_token, inside = 0, int(config["intermediate_size"]), 0, []
        linears += [(width, d), (width, d), (d, width)]
        biases += [width, width, d] if family.mlp_bias(config) else []
    vectors: list[Shape] = [(size,) for size in (*norms, *biases)]
    return LayerParameters((*linears, *inside, *vectors), tuple(linears), width, experts, per_token)
