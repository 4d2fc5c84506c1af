"""Sinks that write for other people's programs: TensorBoard, MLflow, Weights & Biases, and a plain table."""
