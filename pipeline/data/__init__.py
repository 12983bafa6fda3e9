"""Data sets: reading, preparing, augmenting, loading. Imports only `pipeline.files`."""
