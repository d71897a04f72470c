"""One training step: forward passes, loss, gradient, and what is measured of them."""
