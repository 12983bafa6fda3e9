"""Early-bird tickets: network slimming that watches when the channels it would drop settle."""

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
