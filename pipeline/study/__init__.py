"""What was asked and what was found: params, names, paths, records, tracking."""
