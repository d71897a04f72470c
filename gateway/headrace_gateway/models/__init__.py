"""The models that a job may start from, and their prompts' lengths in tokens."""
