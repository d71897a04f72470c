"""Rewards without a verifier: computed from the policy's own probabilities, or from a majority vote."""
