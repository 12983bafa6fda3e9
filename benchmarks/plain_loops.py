"""The training loops of two programs, re-implemented from descriptions of them.

Not their code: the same work in the same order, written for this benchmark, so that both sides run
on the same network, images and clock. OTO v1 trains VGG16-BN with HSPG and makes a second pass over
the training set to log one number; SFW-pruning reads values back from the device in every step.
Both apply torchvision's transforms image by image. The worker processes of their loaders are
omitted: the work is the same and is timed in the main process.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.data_path import PilImages
from benchmarks.loops import WARM, Cost, Setting
from benchmarks.sfw_step import per_tensor_loop
from methods.sfw import SFWConfig, feasible_sets
from methods.sfw.constraints import make_feasible
from pipeline.data.splits import TensorSplit

SMALL = 1e-6


def torchvision_batches(split: TensorSplit, setting: Setting) -> DataLoader[Any]:
    """Dataset, Compose, DataLoader: crop, flip, tensor, statistics, image by image."""
    from torchvision import transforms

    t = setting.transform
    steps = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(t.mean, t.std),
        ]
    )
    pixels = np.ascontiguousarray(split.images.permute(0, 2, 3, 1).numpy())
    data = PilImages(pixels, split.labels, steps)
    return DataLoader(data, batch_size=setting.batch_size, shuffle=True)


class PlainLoop(ABC):
    """A loop timed in thread time: `run` returns the cost of a step and of the rest of an epoch."""

    def __init__(self, setting: Setting, split: TensorSplit) -> None:
        self.model, self.units = setting.build()
        self.loader = torchvision_batches(split, setting)

    def run(self, steps: int) -> Cost:
        self.model.train()
        per_step = sum(_seconds(work, self._batches(), steps) for work in self.passes())
        start = time.thread_time()
        self.epoch_end()
        return Cost(per_step, time.thread_time() - start)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.loader)

    @abstractmethod
    def passes(self) -> list[Any]:
        """One function per pass over the training set, called with every batch."""

    @abstractmethod
    def epoch_end(self) -> None:
        """The work done once per epoch."""


def _seconds(work: Any, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> float:
    for images, labels in islice(batches, WARM):
        work(images, labels)
    start = time.thread_time()
    for images, labels in islice(batches, steps):
        work(images, labels)
    return (time.thread_time() - start) / steps


class HalfSpaceLoop(PlainLoop):
    """OTO v1, half-space stage: boolean indexing per group, and a second pass for the log."""

    def __init__(
        self, setting: Setting, split: TensorSplit, lr: float = 0.1, penalty: float = 5e-4
    ) -> None:
        super().__init__(setting, split)
        self.lr, self.penalty, self.loss_sum = lr, penalty, 0.0
        named = dict(self.model.named_parameters())
        self.groups = [
            [named[s.tensor] for s in g.zig if s.tensor in named] for g in self.units.prunable
        ]
        rows = {id(p) for group in self.groups for p in group}
        self.plain = [p for p in named.values() if id(p) not in rows]

    def passes(self) -> list[Any]:
        return [self.train, self.log]

    def train(self, images: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(self.model(images), labels)
        self.model.zero_grad()
        loss.backward()
        self.optimizer_step()

    def log(self, images: Tensor, labels: Tensor) -> None:
        """In training mode and with autograd, as described."""
        self.loss_sum += F.cross_entropy(self.model(images), labels).item() * len(labels)

    @torch.no_grad()
    def optimizer_step(self) -> None:
        for p in self.plain:
            if p.grad is not None:
                p.add_(p.grad, alpha=-self.lr)
        for group in self.groups:
            self._half_space(group)

    def _half_space(self, params: list[nn.Parameter], epsilon: float = 0.0) -> None:
        n = len(params[0])
        x = torch.cat([p.reshape(n, -1) for p in params], 1)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
        gradient = torch.cat([g.reshape(n, -1) for g in gradients], 1)
        norm = x.norm(dim=1)
        alive = norm != 0
        unit = torch.zeros_like(x)
        unit[alive] = x[alive] / (norm[alive] + SMALL)[:, None]
        trial = x - self.lr * (gradient + self.penalty * unit)
        if (~alive).float().mean().item() < 1.0:
            fell = (trial[alive] * x[alive]).sum(1) < epsilon * norm[alive] ** 2
            index = torch.nonzero(alive).flatten()[fell]
            if len(index):
                trial[index] = 0.0
        trial[~alive] = 0.0
        pieces = trial.split([p[0].numel() for p in params], 1)
        for p, piece in zip(params, pieces, strict=True):
            p.copy_(piece.reshape(p.shape))

    @torch.no_grad()
    def epoch_end(self) -> None:
        """The group norms and the fraction of zero groups, for the log."""
        for group in self.groups:
            norm = torch.cat([p.reshape(len(p), -1) for p in group], 1).norm(dim=1)
            self.loss_sum += norm.sum().item() + (norm == 0).sum().item()


class FrankWolfeLoop(PlainLoop):
    """SFW-pruning: an oracle with sorted top-k per tensor, and values read back in every step."""

    def __init__(self, setting: Setting, split: TensorSplit, log: IO[str]) -> None:
        super().__init__(setting, split)
        config = SFWConfig()
        self.sets = feasible_sets(self.model, config, self.units.weights)
        make_feasible(self.model, self.sets)
        self.params = list(self.model.parameters())
        self.momenta: list[Tensor | None] = [None] * len(self.params)
        self.log, self.seen, self.hits, self.loss_sum = log, 0, 0, 0.0

    def passes(self) -> list[Any]:
        return [self.train]

    def train(self, images: Tensor, labels: Tensor) -> None:
        self.model.zero_grad()
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer_step()
        self.loss_sum += loss.item()
        self.seen += len(labels)
        self.hits += logits.max(1).indices.eq(labels).sum().item()
        self.log.write(f"loss {self.loss_sum:.3f} accuracy {100.0 * self.hits / self.seen:.3f}\n")

    @torch.no_grad()
    def optimizer_step(self) -> None:
        per_tensor_loop(self.params, list(self.sets.values()), self.momenta, 1.0)

    def epoch_end(self) -> None:
        """Count the weights above each of twelve thresholds, in twelve passes over all weights."""
        for power in range(1, -11, -1):
            over = sum((np.abs(p.detach().cpu().numpy()) > 10.0**power).sum() for p in self.params)
            self.log.write(f"{power} {over}\n")
