"""The algorithms: token selection, advantages, importance weights, losses, KL."""
