"""Tasks: loss and scores. The same loop trains every task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.options.mixup import MixedBatch
from pipeline.training.tasks.question_answering import QuestionAnswering


class Task(Protocol):
    """Loss for the loop, scores for the evaluation. Scores are percentages, losses are means.

    `main_score`: the score that "best" maximises.
    """

    main_score: ClassVar[str]

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean loss of the batch, and sums over its examples (0-dim tensors on the device)."""
        ...

    def size(self, batch: Any) -> int:
        """Number of examples in the batch."""
        ...

    def scores(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        """Score `model` in evaluation mode, then restore the mode. Keys: "loss" and the task's
        scores."""
        ...


def parts(batch: Any, count: int) -> list[Any]:
    """Split a batch of tensors into `count` pieces, or one per example if it has fewer."""
    if count == 1:
        return [batch]
    return list(zip(*(tensor.chunk(count) for tensor in batch), strict=True))


@dataclass(frozen=True)
class Classification:
    """Cross entropy (mean over the batch), top-1 and, for more than ten classes, top-5 accuracy in
    percent."""

    main_score: ClassVar[str] = "top1"
    num_classes: int
    label_smoothing: float = 0.0

    def loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor] | MixedBatch
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        if len(batch) == 4:
            return self._mixed_loss(model, batch)
        images, labels = batch
        logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        return loss, {"top1": (logits.detach().argmax(1) == labels).sum()}

    def _mixed_loss(
        self, model: nn.Module, batch: MixedBatch
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss and hits of both labels of a blend, weighted by their shares."""
        images, *labels, weight = batch
        logits = model(images).float()
        best = logits.detach().argmax(1)
        loss, hits = torch.zeros_like(weight), torch.zeros_like(weight)
        for label, share in zip(labels, (weight, 1.0 - weight), strict=True):
            own = F.cross_entropy(
                logits, label, reduction="none", label_smoothing=self.label_smoothing
            )
            loss, hits = loss + share * own, hits + share * (best == label)
        return loss.mean(), {"top1": hits.sum()}

    def size(self, batch: tuple[Tensor, ...]) -> int:
        return int(batch[1].shape[0])

    @torch.no_grad()
    def scores(
        self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        totals: dict[str, Tensor] = {}
        count = 0
        training = model.training
        model.eval()
        for images, labels in batches:
            logits = model(images).float()
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            hits = best == labels[:, None]
            batch = {
                "loss": F.cross_entropy(logits, labels, reduction="sum"),
                "top1": hits[:, 0].sum() * 100.0,
            }
            if self.num_classes > 10:
                batch["top5"] = hits.sum() * 100.0
            totals = {k: totals.get(k, 0) + v.double() for k, v in batch.items()}
            count += len(labels)
        model.train(training)
        if not count:
            raise ValueError("scores of an empty split: there is nothing to evaluate")
        return {k: float(v) / count for k, v in totals.items()}


TASKS: Mapping[str, Callable[..., Task]] = {
    "classification": Classification,
    "question_answering": QuestionAnswering,
}
