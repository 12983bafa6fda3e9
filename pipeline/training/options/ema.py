"""Exponential moving average of a network's weights.

    average <- d average + (1 - d) weights        after every optimizer step

This covers parameters and floating buffers (BatchNorm's statistics); integer buffers are copied.
The decay warms up as in TensorFlow's `ExponentialMovingAverage(num_updates)`: after t updates d is

    min(decay, (1 + t) / (10 + t))

so that the initial weights lose their influence even in a short training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.files import tensors_sha256
from pipeline.training.loop.job import Job
from pipeline.training.loop.passes import Backward

EMA = "ema"


def warmed_up(decay: float, updates: int) -> float:
    """The decay d after `updates` updates."""
    return min(decay, (1 + updates) / (10 + updates))


class Average:
    """A second network that holds the average of one network's weights. Does nothing at decay 0.

    Create it from the network as trained, hooks included. An update costs two multi-tensor kernels
    and never waits for the device.

    Attributes:
        model: the network that holds the average; None for a decay of 0.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.model: nn.Module | None = None
        self._floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._others: tuple[list[Tensor], list[Tensor]] = ([], [])
        if not decay:
            return
        self.model = copy.deepcopy(model).requires_grad_(False)
        live, seen = model.state_dict(keep_vars=True), set()
        for name, own in self.model.state_dict(keep_vars=True).items():
            if isinstance(own, Tensor) and id(own) not in seen:  # update a tied weight once
                seen.add(id(own))
                pairs = self._floats if own.is_floating_point() else self._others
                pairs[0].append(own)
                pairs[1].append(live[name])

    @property
    def models(self) -> list[nn.Module]:
        """The network of the average, if there is one."""
        return [] if self.model is None else [self.model]

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average."""
        if self.model is None:
            return
        share = 1.0 - warmed_up(self.decay, self.updates)
        if self._floats[0]:
            torch._foreach_lerp_(*self._floats, share)
        if self._others[0]:
            torch._foreach_copy_(*self._others)
        self.updates += 1

    @torch.no_grad()
    def restart(self) -> None:
        """Start again from the current weights. Call it after the weights were replaced."""
        for own, live in (self._floats, self._others):
            if own:
                torch._foreach_copy_(own, live)
        self.updates = 0

    def scores(self, job: Job) -> dict[str, float]:
        """Validation scores of the average, as "ema/<score>". A collective of the job's team."""
        found = {} if self.model is None else Backward(job, self.model).validate()
        return {f"{EMA}/{name}": value for name, value in found.items()}

    def digest(self) -> dict[str, str]:
        """Digest of the average, by name; {} without an average."""
        if self.model is None:
            return {}
        return {EMA: tensors_sha256(self.model.state_dict())}

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint; {} without an average."""
        if self.model is None:
            return {}
        return {EMA: {"model": self.model.state_dict(), "updates": self.updates}}

    def load_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if self.model is None:
            return
        self.model.load_state_dict(checkpoint[EMA]["model"])
        self.updates = checkpoint[EMA]["updates"]
