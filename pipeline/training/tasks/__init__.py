"""What a network is for: losses and scores."""
