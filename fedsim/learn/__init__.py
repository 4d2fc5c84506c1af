"""The compute plane: models, data, local updates. It knows nothing of time."""
