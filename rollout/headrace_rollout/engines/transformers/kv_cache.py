"""A key-value cache of fixed rows for continuous batching, in the form that transformers models take.

    keys, values of each layer: [rows, heads, columns, dim]; column c of row r belongs to the token at position c

             columns ──────────────►            prefill  writes columns 0…P-1 of the rows of new prompts
      row 0  k k k k k k k │ ·  ·               decode   writes one column in each row, at the row's own position,
      row 1  k k k x x x x │ ·  ·                        and attends over columns 0…width-1, masked per row
      row 2  k k k k k x x │ ·  ·               move     copies a row into a hole that an ended request left
                     width ┘

Nothing is concatenated or shifted while requests come and go: against a rolling left-padded batch this saves a copy of
the whole cache in every step. What lies right of a row's own position (x: an earlier tenant, or the padding of a
prefill) is finite and masked, and is overwritten before it comes into sight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED_ATTENTION = "headrace_grouped"
COLUMN_STEP = 64


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer caches for each token."""

    heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """The forward pass under way computes whole prompts: that of `rows[i]` is the pass's batch entry `source[i]`."""

    rows: torch.Tensor
    source: torch.Tensor


@dataclass(frozen=True, slots=True)
class Decode:
    """The forward pass under way computes one token for each row r, at position `columns[r]`, below `width`."""

    rows: torch.Tensor
    columns: torch.Tensor
    width: int


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values."""

    is_sliding = False

    def __init__(self, shape: LayerShape, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.keys = torch.zeros(0, shape.heads, 0, shape.key_dim, dtype=dtype, device=device)
        self.values = torch.zeros(0, shape.heads, 0, shape.value_dim, dtype=dtype, device=device)
        self.is_initialized = True
        self.plan: Prefill | Decode | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to do: the layer is made with its shapes."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the pass's keys and values where the plan says; return those to attend over."""
        plan = self.plan
        if isinstance(plan, Prefill):
            width = key_states.shape[2]
            self.keys[plan.rows, :, :width] = key_states[plan.source]
            self.values[plan.rows, :, :width] = value_states[plan.source]
            return key_states, value_states
        if plan is None:
            raise RuntimeError("a forward pass over the slot cache needs a plan")
        self.keys[plan.rows, :, plan.columns] = key_states[:, :, 0]
        self.values[plan.rows, :, plan.columns] = value_states[:, :, 0]
        running = len(plan.rows)
        return self.keys[:running, :, : plan.width], self.values[:running, :, : plan.width]

    def get_seq_length(self) -> int:
        """Columns that earlier passes filled, as the model's own masks need it."""
        return self.plan.width - 1 if isinstance(self.plan, Decode) else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what the pass attends over."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: the layer grows."""
        return -1

    def resize(self, rows: int, columns: int) -> None:
        """Make it `rows` × `columns`, keeping what both sizes have in common."""
        self.keys = _resized(self.keys, rows, columns)
        self.values = _resized(self.values, rows, columns)


class SlotCache(Cache):
    """The layers together. It is as large as the requests in it can come to need, and never above `budget_bytes`."""

    def __init__(
        self, shapes: list[LayerShape], dtype: torch.dtype, device: torch.device, budget_bytes: int, capacity: int
    ) -> None:
        self._layers = [SlotLayer(shape, dtype, device) for shape in shapes]
        super().__init__(layers=list(self._layers))
        token_bytes = dtype.itemsize * sum(shape.heads * (shape.key_dim + shape.value_dim) for shape in shapes)
        self.budget_tokens = budget_bytes // token_bytes
        self._capacity = capacity
        self._rows = self._columns = 0

    def fits(self, rows: int, columns: int) -> bool:
        """Whether the budget has room for `rows` requests of up to `columns` tokens."""
        return rows * columns <= self.budget_tokens

    def reserve(self, rows: int, columns: int) -> None:
        """Grow to hold `rows` requests of up to `columns` tokens; `fits` must have allowed it."""
        if rows <= self._rows and columns <= self._columns:
            return
        rounded = COLUMN_STEP * -(-columns // COLUMN_STEP)
        sizes = [  # best first: room to spare, so that growing is rare; nothing given up; no more than is needed
            (max(self._rows, min(self._capacity, 2 * rows)), max(self._columns, rounded)),
            (max(self._rows, rows), max(self._columns, columns)),
            (rows, columns),
        ]
        self._rows, self._columns = next(size for size in sizes if self.fits(*size) or size == (rows, columns))
        for layer in self._layers:
            layer.resize(self._rows, self._columns)

    def plan(self, plan: Prefill | Decode) -> None:
        """Say what the next forward pass computes."""
        for layer in self._layers:
            layer.plan = plan

    def move(self, sources: torch.Tensor, destinations: torch.Tensor, width: int) -> None:
        """Copy the first `width` columns of rows `sources` to rows `destinations`."""
        for layer in self._layers:
            layer.keys[destinations, :, :width] = layer.keys[sources, :, :width]
            layer.values[destinations, :, :width] = layer.values[sources, :, :width]


def register_grouped_attention() -> None:
    """Make `GROUPED_ATTENTION` known to transformers as an attention implementation."""
    AttentionInterface.register(GROUPED_ATTENTION, _grouped_attention)
    AttentionMaskInterface.register(GROUPED_ATTENTION, sdpa_mask)


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa`, but a decode step reads each cached head once, not once for every query head on it.

    With a mask, `sdpa` copies keys and values for each query head. With one query token, the query heads of a group
    can stand in the place of query positions instead: 14 times faster at 3 heads a group, 64 rows, 300 columns.
    """
    rows, query_heads, query_length, dim = query.shape
    if query_length > 1 or attention_mask is None:
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return attended
    heads = key.shape[1]
    grouped = query.reshape(rows, heads, query_heads // heads, dim)
    output = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, query_heads, value.shape[-1]), None


def _resized(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    # Zeros, not uninitialised memory: a masked column has weight 0, and 0 × NaN would still be NaN.
    grown = tensor.new_zeros(rows, tensor.shape[1], columns, tensor.shape[3])
    kept_rows, kept_columns = min(rows, tensor.shape[0]), min(columns, tensor.shape[2])
    grown[:kept_rows, :, :kept_columns] = tensor[:kept_rows, :, :kept_columns]
    return grown
