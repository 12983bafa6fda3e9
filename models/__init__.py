"""Networks: one file per family, each registering the networks it knows."""
