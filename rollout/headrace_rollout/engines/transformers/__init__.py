"""Headrace's own engine on transformers models: continuous batching on any machine."""
