"""Flower's strategies in the simulated world."""
