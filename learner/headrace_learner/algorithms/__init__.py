"""The algorithms: which tokens count, advantages, importance weights, losses, KL."""
