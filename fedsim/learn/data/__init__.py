"""Datasets, and how their samples are dealt out to clients."""
