"""The workers of a job that has its resources: their supervision, training, and evaluation of policy versions."""
