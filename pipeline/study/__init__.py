"""Studies: settings, paths, records, tracking, and how stages run."""
