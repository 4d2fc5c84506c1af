"""FedAvg on images: the app that the Flower benchmark runs in several engines."""
