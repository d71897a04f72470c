"""Training without a service: tiny models, steps of one process, statistics of gradients."""
