"""Algorithms, one file each; the paper stands at the top of the file."""
