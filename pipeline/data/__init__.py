"""Data sets: reading, preparing, augmenting, loading. Imports nothing of ours."""
