"""The vLLM engine: its processes, its start, and weight updates while it runs."""
