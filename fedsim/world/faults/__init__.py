"""What goes wrong in the world, and when."""
