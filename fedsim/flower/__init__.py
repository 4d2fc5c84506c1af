"""The bridge to Flower: its strategies in simulated time, and ours in its deployments."""
