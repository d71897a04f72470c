"""The model of the `transformers` engine, its slot cache, and the forward passes.

    prefill   whole prompts into rows of the cache           → logits after each prompt
    decode    one token of every row                         → logits after each token
    score     given tokens, no cache                         → log-probabilities
    stage     weights from disk into separate memory; in any thread, concurrently with the passes above
    swap      the staged weights become the model's, at once; between two passes

Only `stage` is thread-safe: one thread must make all passes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from headrace_core.config.generation_settings import DEFAULT_CACHE_GIB
from headrace_core.errors import WeightsDamaged

from ...end_of_text import end_tokens
from ..engine import EngineConfig, EngineFailure
from ..parameter_names import own_config
from ..sampling import tempered
from ..weight_files import BaseModel
from .kv_cache import GROUPED_ATTENTION, Decode, LayerShape, Prefill, SlotCache, register_grouped_attention

Tokens = npt.NDArray[np.int32]
StagedWeights = list[tuple[torch.Tensor, torch.Tensor]]
"""(parameter, its new value)"""
PASS_TOKENS = 8192
"""Maximum number of tokens, padding included, of one prefill or scoring pass; it bounds the memory."""
_LOADING = threading.Lock()
"""transformers sets process-wide switches while it loads: of two models loaded at once, one would get no weights."""


class PolicyModel:
    """A causal language model in Hugging Face format with full attention, and the cache of the requests it decodes."""

    def __init__(self, config: EngineConfig) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        register_grouped_attention()
        with _LOADING:
            # Any, because the library has no types.
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                config.model,
                config=own_config(config.model),
                dtype=_dtype(config, self.device),
                local_files_only=True,
                use_safetensors=True,
            )
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and config.max_model_len > positions:
            raise EngineFailure(
                f"{config.model} knows {positions} positions, less than max_context {config.max_model_len}: lower it"
            )
        self.model.to(self.device).eval().requires_grad_(False)
        if self.model.config._attn_implementation == "sdpa":
            self.model.set_attn_implementation(GROUPED_ATTENTION)
        self.vocab_size = int(self.model.get_input_embeddings().num_embeddings)
        self.stop_ids = end_tokens(config.model)
        self._parameters = _tensors(self.model)
        self._base = BaseModel(config.model)
        if config.lora_rank is not None and not self._base.names <= self._parameters.keys():
            # In memory the tensors have other names than in the folder. `swap` exchanges pointers, so that these
            # tensors keep the values that the engine started with.
            self._base = BaseModel(config.model, {name: tensor.data for name, tensor in self._parameters.items()})
        self.cache = self._slot_cache(config)

    def prefill(self, prompts: Sequence[Tokens], first_row: int) -> torch.Tensor:
        """Fill rows first_row, first_row + 1, … with `prompts`. Returns logits [n, V] of the token after each prompt.

        Equal prompts (of the completions of one group) are computed once.
        """
        entries: dict[bytes, list[int]] = {}
        for index, prompt in enumerate(prompts):
            entries.setdefault(prompt.tobytes(), []).append(index)
        logits: list[torch.Tensor] = []
        order: list[int] = []
        for chunk in _chunks([indices for _, indices in sorted(entries.items(), key=_bytes_length)], prompts):
            flat = [index for indices in chunk for index in indices]
            source = torch.tensor([entry for entry, indices in enumerate(chunk) for _ in indices], device=self.device)
            self.cache.plan(Prefill(rows=torch.tensor(flat, device=self.device) + first_row, source=source))
            logits.append(self._after_each([prompts[indices[0]] for indices in chunk])[source])
            order += flat
        return torch.cat(logits)[torch.tensor(order).argsort().to(self.device)]

    def recompute(self, cached: Sequence[Tokens]) -> None:
        """Recompute the cache of rows 0, 1, … from their tokens `cached`, with the present weights."""
        entries = sorted(([row] for row in range(len(cached))), key=lambda entry: len(cached[entry[0]]))
        for chunk in _chunks(entries, cached):
            rows = torch.tensor([entry[0] for entry in chunk], device=self.device)
            self.cache.plan(Prefill(rows=rows, source=torch.arange(len(rows), device=self.device)))
            self._whole([cached[entry[0]] for entry in chunk], logits_to_keep=1)

    def decode(self, tokens: Tokens, positions: npt.NDArray[np.int64]) -> torch.Tensor:
        """Decode tokens[r] at positions[r] in row r, for every row in use. Returns logits [n, V] of the next tokens."""
        width = int(positions.max()) + 1
        columns = torch.from_numpy(positions).to(self.device)
        hidden = torch.arange(width, device=self.device) > columns[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.model.dtype, device=self.device)
        mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)
        self.cache.plan(Decode(rows=torch.arange(len(tokens), device=self.device), columns=columns, width=width))
        output = self.model(
            input_ids=torch.from_numpy(tokens).long().to(self.device)[:, None],
            attention_mask=mask[:, None, None, :],
            position_ids=columns[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def move(self, sources: npt.NDArray[np.int64], destinations: npt.NDArray[np.int64], width: int) -> None:
        """Copy the first `width` columns of the cache's rows `sources` to rows `destinations`."""
        self.cache.move(
            torch.from_numpy(sources).to(self.device), torch.from_numpy(destinations).to(self.device), width
        )

    def score(self, asked: Sequence[tuple[Tokens, int, float]]) -> list[npt.NDArray[np.float32]]:
        """For each (tokens, start, temperature): log-probabilities [len(tokens) - start] of tokens[start:]."""
        scores: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(asked)
        by_length = sorted(([index] for index in range(len(asked))), key=lambda entry: len(asked[entry[0]][0]))
        for chunk in _chunks(by_length, [tokens for tokens, _, _ in asked]):
            indices = [entry[0] for entry in chunk]
            first = min(asked[index][1] for index in indices)
            ids = _padded([asked[index][0] for index in indices]).to(self.device)
            kept = torch.arange(first - 1, ids.shape[1] - 1, device=self.device)
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
            temperatures = torch.tensor([asked[index][2] for index in indices], device=self.device)
            logprobs = tempered(logits, temperatures).gather(2, ids[:, first:, None])[:, :, 0].cpu().numpy()
            for row, index in enumerate(indices):
                tokens, start, _ = asked[index]
                scores[index] = logprobs[row, start - first : len(tokens) - first].copy()
        return scores

    def stage(self, folder: Path) -> StagedWeights:
        """(parameter, new value) for every parameter, from the version in `folder` (see `weight_files`).

        The model does not change. Raises `WeightsDamaged` if the files are incomplete, or of another model.
        """
        staged: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, value in self._base.read(folder):
            parameter = self._parameters.get(name)
            if parameter is None or parameter.shape != value.shape:
                raise WeightsDamaged(f"{folder}: {name} {tuple(value.shape)} is no parameter of this model")
            # A copy, because `value` may be a memory map, whose pages would be read after the swap, during steps.
            new = value.to(self.device, parameter.dtype, copy=True)
            staged[id(parameter)] = (parameter, new)  # tied names are one parameter; the files may have any of them
        missing = [name for name, parameter in self._parameters.items() if id(parameter) not in staged]
        if missing:
            raise WeightsDamaged(f"{folder} lacks {len(missing)} parameters, {missing[0]} among them")
        return list(staged.values())

    def swap(self, staged: StagedWeights) -> None:
        """Make the staged values the model's; `staged` then holds the replaced ones. Swaps pointers, copies nothing."""
        for index, (parameter, value) in enumerate(staged):
            staged[index] = (parameter, parameter.data)
            parameter.data = value

    def _after_each(self, prompts: list[Tokens]) -> torch.Tensor:
        """Logits [n, V] after the last token of each prompt."""
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        kept, inverse = last.unique(return_inverse=True)
        return self._whole(prompts, logits_to_keep=kept.to(self.device))[torch.arange(len(prompts)), inverse]

    def _whole(self, prompts: list[Tokens], logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """One pass over whole prompts, padded on the right, where causal attention ignores the padding."""
        ids = _padded(prompts).to(self.device)
        positions = torch.arange(ids.shape[1], device=self.device)[None].expand_as(ids)
        logits: torch.Tensor = self.model(
            input_ids=ids,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        ).logits
        return logits

    @torch.inference_mode()
    def _slot_cache(self, config: EngineConfig) -> SlotCache:
        """A cache with the shapes of the one that the model fills itself, found by a pass over one token."""
        probe = DynamicCache(config=self.model.config)
        self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), past_key_values=probe)
        shapes = []
        for layer in probe.layers:
            window = getattr(layer, "sliding_window", None)
            if not isinstance(layer, DynamicLayer) or (window is not None and window < config.max_model_len):
                raise EngineFailure(f"{config.model}: the cache of {layer!r} is not that of full attention")
            shapes.append(LayerShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]))
        dtype = probe.layers[0].keys.dtype
        gib = DEFAULT_CACHE_GIB if config.kv_cache_gib is None else config.kv_cache_gib
        cache = SlotCache(shapes, dtype, self.device, int(gib * 2**30), config.max_running)
        if not cache.fits(1, config.max_model_len):
            raise EngineFailure(
                f"kv_cache_gib {gib} holds {cache.budget_tokens} tokens, less than one request of "
                f"max_context {config.max_model_len}: raise kv_cache_gib, or lower max_context"
            )
        return cache


def _dtype(config: EngineConfig, device: torch.device) -> torch.dtype | str:
    if config.dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return torch.float32 if config.dtype == "float32" else torch.bfloat16


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers by all of their names, tied names included."""
    saved = set(model.state_dict().keys())
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor for name, tensor in named if name in saved}


def _bytes_length(entry: tuple[bytes, list[int]]) -> int:
    return len(entry[0])


def _chunks(entries: list[list[int]], prompts: Sequence[Tokens]) -> Iterator[list[list[int]]]:
    """Split `entries` into passes of at most PASS_TOKENS. Each has the indices of one prompt, by ascending length."""
    chunk: list[list[int]] = []
    for entry in entries:
        if chunk and (len(chunk) + 1) * len(prompts[entry[0]]) > PASS_TOKENS:
            yield chunk
            chunk = []
        chunk.append(entry)
    if chunk:
        yield chunk


def _padded(prompts: Sequence[Tokens]) -> torch.Tensor:
    """[n, max length] token ids, padded on the right with token 0."""
    ids = torch.zeros(len(prompts), max(len(prompt) for prompt in prompts), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.from_numpy(prompt)
    return ids
