"""One file per DVC stage."""
