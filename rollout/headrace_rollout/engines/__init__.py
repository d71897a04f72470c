"""Rollout engines: one protocol (`engine`) with two implementations, vLLM and transformers, and one contract suite."""

from __future__ import annotations

from .engine import Engine, EngineConfig


def create(name: str, config: EngineConfig) -> Engine:
    """The engine `name`. Only that one is imported: vLLM takes seconds, and may not be installed."""
    if name == "vllm":
        from .vllm.engine import VllmEngine

        return VllmEngine(config)
    from .transformers.engine import TransformersEngine

    return TransformersEngine(config)
