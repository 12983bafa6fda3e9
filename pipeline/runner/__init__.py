"""Runs a study on all cores: what is stale, in which order, in which process."""
