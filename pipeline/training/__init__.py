"""Training: the loop, the method interface, schedules, checkpoints."""
