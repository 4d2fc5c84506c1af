"""The simulation's strategies in real Flower deployments."""
