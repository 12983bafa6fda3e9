"""How one training runs: the loop, its steps, checkpoints and processes."""
