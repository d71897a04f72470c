"""Checks by config.json whether a model can be trained, so that a job with one that cannot is refused at submission.

The model is not loaded. Problems that config.json does not show are found by the workers when they start.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headrace_core.errors import InvalidRequest

from .chat_templates import special_tokens
from .model_folder import json_of, shapes

_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
"""Settings that multiply the logits, which the learner does not support; a factor of 1 is accepted."""
_OTHER_LAYERS = frozenset(
    (
        *("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe"),
        *("mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"),
        *("qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2"),
    )
)
"""Model types with recurrent or convolutional layers."""
_ALIBI = frozenset(("bloom", "mpt"))
_EMBEDDINGS = frozenset(
    (
        *("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        *("language_model.model.embed_tokens.weight", "transformer.wte.weight", "wte.weight"),
        *("gpt_neox.embed_in.weight", "transformer.word_embeddings.weight"),
    )
)
"""Names of the embeddings of the text model's tokens."""
_AUTO_CLASSES = "models/auto/modeling_auto.py"


def check_trainable(model: Path, engine: str, context: int) -> None:
    """Raises an `InvalidRequest` that says why the model cannot be trained with this engine on sequences of up to
    `context` tokens; `Damaged` if config.json cannot be read."""
    config = json_of(model / "config.json")
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, dict) else config
    for reason in _reasons(config, merged):
        raise InvalidRequest(f"{model.name} cannot be trained: {reason}", param="model", code="model_not_supported")
    if not any(model.glob("*.safetensors")):
        raise InvalidRequest(
            f"{model.name} cannot be trained: its folder holds no *.safetensors; save its weights so "
            "(save_pretrained does)",
            param="model",
            code="model_not_supported",
        )
    for reason in _of_weights(model, merged):
        raise InvalidRequest(f"{model.name} cannot be trained: {reason}", param="model", code="model_not_supported")
    for reason in _not_full_attention(config, merged, context) if engine == "transformers" else ():
        raise InvalidRequest(
            f"{model.name} cannot be sampled by the engine transformers, which has full attention alone: {reason}; "
            'take the engine "vllm"',
            param="model",
            code="model_not_supported",
        )


def check_splittable(model: Path, devices: int, param: str) -> None:
    """Raises `InvalidRequest` if the attention heads of the model cannot be divided among `devices`; `Damaged` if
    config.json cannot be read."""
    config = json_of(model / "config.json")
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, dict) else config
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = merged.get(name)
        if not isinstance(heads, int) or heads < 1:
            continue
        # Where devices outnumber the heads of keys and values, several hold the same one.
        copied = name == "num_key_value_heads" and devices > heads and devices % heads == 0
        if heads % devices and not copied:
            raise InvalidRequest(
                f"{model.name} has {heads} heads ({name}), which tensor_parallel_size {devices} does not divide",
                param=param,
            )


def lacks_end_token(model: Path) -> bool:
    """Whether the model names no token that ends a text, in any of the places where the engines look for one. False
    where config.json leaves it to the default of the model's type."""
    config, generation = (_json_if_there(model / name) for name in ("config.json", "generation_config.json"))
    named = [
        part.get("eos_token_id") for part in (config, config.get("text_config"), generation) if isinstance(part, dict)
    ]
    tokenizer = special_tokens(model, _json_if_there(model / "tokenizer_config.json"))
    return "eos_token_id" in config and all(ids in (None, []) for ids in named) and not tokenizer.get("eos_token")


def _json_if_there(file: Path) -> dict[str, Any]:
    return json_of(file) if file.is_file() else {}


def _reasons(config: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[str]:
    """The reasons why the model cannot be trained, with any engine."""
    quantization = merged.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        yield (
            f"its weights are quantized ({method or 'quantization_config is set'}), and gradients need whole ones; "
            "take the model that it was made of, or save it dequantized"
        )
    if config.get("is_encoder_decoder"):
        yield "it is an encoder and a decoder, and prompts and completions are one sequence here; take a causal model"
    yield from _of_architecture(config, merged)
    for name in _SCALES:
        if merged.get(name) not in (None, 1):
            yield f"its logits are scaled by {name} = {merged[name]!r:.40}, which the learner does not compute"
    if merged.get("attn_logit_softcapping") is not None:
        yield (
            "its scores of attention pass through attn_logit_softcapping, which the attention that it is trained with "
            "does not compute: it would be trained on other log-probabilities than those sampled from"
        )


def _of_architecture(config: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[str]:
    kind, known = config.get("model_type"), causal_models()
    if not isinstance(kind, str) or not known:
        return
    causal = known.get(kind)
    if causal is None:
        own_code = " (its folder has code of its own, auto_map, which is not run)" if config.get("auto_map") else ""
        yield f"transformers knows no causal language model of type {kind!r:.60}{own_code}"
        return
    saved = config.get("architectures")
    if isinstance(saved, list) and saved and not _same_class(saved, causal):
        yield (
            f"it was saved as {', '.join(map(str, saved))[:200]}, and to generate it would be loaded as "
            f"{' or '.join(causal)}, with a head that was never trained"
        )
    # Encoders that can also be decoders declare it in their config.
    if "decoder" not in kind and causal[0].endswith("LMHeadModel") and merged.get("is_decoder") is False:
        yield f"it is an encoder: {kind} sees later tokens, too, unless is_decoder is set"


def _of_weights(model: Path, merged: Mapping[str, Any]) -> Iterator[str]:
    """A vocabulary of another size than by config.json: no engine loads such weights, and what they say is obscure."""
    vocabulary = merged.get("vocab_size")
    for file in sorted(model.glob("*.safetensors")) if isinstance(vocabulary, int) else ():
        for name, shape in shapes(file).items():
            if name in _EMBEDDINGS and shape[:1] != (vocabulary,):
                yield (
                    f"its weights hold embeddings of {shape[0] if shape else 0} tokens ({name}), and its config.json "
                    f"names {vocabulary} (vocab_size): save both together"
                )


def _same_class(saved: list[Any], causal: tuple[str, ...]) -> bool:
    """Whether the saved class is a causal language model; a vision-language model counts, and is loaded as its text
    model."""
    if any(str(name).endswith("ForConditionalGeneration") for name in saved):
        return True
    return bool({str(name).lower() for name in saved} & {name.lower() for name in causal})


def _not_full_attention(config: Mapping[str, Any], merged: Mapping[str, Any], context: int) -> Iterator[str]:
    kinds = {config.get("model_type"), merged.get("model_type")}
    if merged.get("alibi") is True or kinds & _ALIBI:
        yield "its positions are biases of attention (ALiBi)"
    if kinds & _OTHER_LAYERS:
        yield "some of its layers are no attention"
    layers = merged.get("layer_types")
    others = sorted({str(kind) for kind in layers} - {"full_attention"}) if isinstance(layers, list) else None
    windowed = others is None or any("sliding" in kind or "chunked" in kind for kind in others)
    if others and any("sliding" not in kind and "chunked" not in kind for kind in others):
        yield f"some of its layers are {', '.join(others)[:100]}"
    for name in ("sliding_window", "attention_chunk_size") if windowed else ():
        window = merged.get(name)
        if merged.get("use_sliding_window") is not False and isinstance(window, int) and window < context:
            yield f"it sees {window} tokens back ({name}), and max_context is {context}"


@cache
def causal_models() -> Mapping[str, tuple[str, ...]]:
    """By `model_type`, the classes that transformers loads as causal language models; empty if it is not installed.

    They are read from transformers' source, because importing it would load torch into the gateway.
    """
    spec = find_spec("transformers")
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        tree = ast.parse((Path(folder) / _AUTO_CLASSES).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES":
                assert isinstance(node.value, ast.Call)
                pairs = ast.literal_eval(node.value.args[0])
                return {kind: names if isinstance(names, tuple) else (names,) for kind, names in pairs}
    return {}
