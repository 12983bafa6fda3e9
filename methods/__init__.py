"""One file per pruning method."""
