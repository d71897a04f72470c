"""Training without a service: tiny models, training in one process, statistics of gradients."""
