"""Strategies with a server."""
