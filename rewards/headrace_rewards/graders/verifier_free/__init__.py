"""Rewards without a verifier: from the policy's own probabilities, or from votes."""
