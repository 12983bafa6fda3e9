"""What the OTO family shares: row-wise optimizers, search directions, redundancy scores."""
