"""Recorded availability and devices."""
