"""Which samples come first, and how many."""
