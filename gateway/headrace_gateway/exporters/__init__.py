"""Measurements for other programs: Prometheus, TensorBoard, Weights & Biases, JSON lines."""
