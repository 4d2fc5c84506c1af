"""Models, built reproducibly."""
