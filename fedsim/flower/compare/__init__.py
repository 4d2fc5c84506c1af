"""One app here and in Flower's own simulation engine, side by side."""
