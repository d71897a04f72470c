"""Serves a trained model as a chat; completions may be streamed."""
