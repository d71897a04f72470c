"""Rollout engines: one protocol (`base`), a vLLM and a transformers implementation behind it, one contract suite over both."""
