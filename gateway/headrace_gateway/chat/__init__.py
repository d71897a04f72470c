"""Chats with trained models: their actors, prompts and response formats."""
