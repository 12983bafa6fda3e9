"""How a stage runs: devices, locks, processes, signals, progress."""
