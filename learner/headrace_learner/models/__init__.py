"""Policy, critic and adapters, and log-probabilities without the whole matrix of logits."""
