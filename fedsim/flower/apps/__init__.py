"""Users' own Flower apps in simulated time."""
