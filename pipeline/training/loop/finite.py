"""Detect a training that diverged, and end it with an error that says how to continue."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


class DivergedError(RuntimeError):
    """The loss or a weight became NaN or infinite."""

    def __init__(self, what: str, where: str, last: Path) -> None:
        """
        Args:
            last: the file of the last good checkpoint, which may not exist yet.
        """
        good = last if last.exists() else "none (the training began)"
        super().__init__(
            f"the {what} is not finite at {where}; last good checkpoint: {good}. "
            "Lower the learning rate or set train.clip_norm in params.yaml."
        )


def weights_are_finite(model: nn.Module) -> bool:
    """Check weights as well as losses: a step with a finite loss can produce non-finite weights.
    Waits for the device."""
    largest = torch.stack([p.detach().abs().max() for p in model.parameters()])
    return bool(torch.isfinite(largest).all())
