"""What a network costs and scores: MACs, parameters, latency. No training depends on it."""
