"""Strategies without a server."""
