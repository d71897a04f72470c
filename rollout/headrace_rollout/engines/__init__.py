"""Rollout engines: one protocol (`engine`), vLLM and transformers behind it, one contract suite over both."""

from __future__ import annotations

from .engine import Engine, EngineConfig


def create(name: str, config: EngineConfig) -> Engine:
    """The engine `name`. Only the one asked for is imported: vLLM takes seconds, and need not be installed."""
    if name == "vllm":
        from .vllm.engine import VllmEngine

        return VllmEngine(config)
    from .transformers.engine import TransformersEngine

    return TransformersEngine(config)
