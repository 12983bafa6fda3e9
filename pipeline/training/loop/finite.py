"""A training whose numbers are no longer finite ends, with a way on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


class DivergedError(RuntimeError):
    """The loss or a weight became NaN or infinite."""

    def __init__(self, what: str, where: str, last: Path) -> None:
        """
        Args:
            last: the file of the last good checkpoint, which may not be there yet.
        """
        good = last if last.exists() else "none (the training began)"
        super().__init__(
            f"the {what} is not finite at {where}; last good checkpoint: {good}. "
            "Lower the learning rate or set train.clip_norm in params.yaml."
        )


def weights_are_finite(model: nn.Module) -> bool:
    """A finite loss may precede poisoned weights. Waits for the device."""
    largest = torch.stack([p.detach().abs().max() for p in model.parameters()])
    return bool(torch.isfinite(largest).all())
