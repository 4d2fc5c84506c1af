"""FedAMD: anchors and miners."""
