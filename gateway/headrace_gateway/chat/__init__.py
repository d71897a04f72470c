"""Chat completions: the Ray actors that run models, their prompts and response formats."""
