"""Early-bird tickets: network slimming that detects when the pruning mask has stabilised."""

from methods.early_bird.method import (
    EarlyBird,
    EarlyBirdConfig,
    distances_back,
    emerged,
    flat_mask,
    pairwise_distances,
    recent_distances,
)

__all__ = [
    "EarlyBird",
    "EarlyBirdConfig",
    "distances_back",
    "emerged",
    "flat_mask",
    "pairwise_distances",
    "recent_distances",
]
