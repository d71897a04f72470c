"""Our own engine on transformers: continuous batching on any machine."""
