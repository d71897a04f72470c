"""Exports of measurements to Prometheus, TensorBoard, Weights & Biases and JSON lines."""
