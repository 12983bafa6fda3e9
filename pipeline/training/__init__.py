"""How it learns: the loop, the method interface, schedules, checkpoints."""
