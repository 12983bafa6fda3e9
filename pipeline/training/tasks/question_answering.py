"""Extractive question answering: the answer is a span of the context, given by the logits of its
start and end.

A network maps inputs [B, 3, T] (token ids, attention mask, token types) to logits [B, 2, T].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.squad.batches import Asked
from pipeline.data.squad.prepared import QuestionSplit
from pipeline.training.tasks.squad_scores import answer_scores

Logits = npt.NDArray[np.float64]
MASK = 1  # row of the inputs


@dataclass(frozen=True)
class QuestionAnswering:
    """Loss: mean of the cross entropies of start and end. Padding cannot be an answer; targets
    outside the window are ignored.

    Scores: exact match and F1 in percent of the questions; "loss" is a mean over windows.

    Attributes:
        n_best: how many starts and ends of a window are combined.
        max_answer: longest answer, in tokens.
    """

    main_score: ClassVar[str] = "f1"
    num_classes: int = 2
    label_smoothing: float = 0.0
    n_best: int = 20
    max_answer: int = 30

    def loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        inputs, target = batch
        logits = _masked(model(inputs), inputs)
        found = logits.detach().argmax(2) == target
        loss = span_loss(logits, target, self.label_smoothing).sum() / _counted(target, logits)
        return loss, {"span": found.all(1).sum()}

    def size(self, batch: tuple[Tensor, Any]) -> int:
        return int(batch[0].shape[0])

    @torch.no_grad()
    def scores(self, model: nn.Module, batches: Iterable[tuple[Tensor, Asked]]) -> dict[str, float]:
        training = model.training
        model.eval()
        answers: Answers | None = None
        total, count = 0.0, 0
        for inputs, asked in batches:
            logits = _masked(model(inputs), inputs)
            total += float(span_loss(logits, asked.target).sum().double())
            count += int(_counted(asked.target, logits))
            answers = answers or Answers(asked.split, self.n_best, self.max_answer)
            for row, pair in zip(asked.rows, logits.double().cpu().numpy(), strict=True):
                answers.add(row, pair)
        model.train(training)
        if answers is None:
            raise ValueError("scores of an empty split: there is nothing to evaluate")
        golds = [key.golds for key in answers.split.questions]
        texts = answers.texts()
        return {"loss": total / max(count, 1), **answer_scores(zip(texts, golds, strict=True))}


def _masked(logits: Tensor, inputs: Tensor) -> Tensor:
    """float32 logits; those of padding have the smallest finite value."""
    padding = inputs[:, MASK, None] == 0
    return logits.float().masked_fill(padding, torch.finfo(torch.float32).min)


def _inside(target: Tensor, logits: Tensor) -> Tensor:
    return (target >= 0) & (target < logits.shape[2])


def _counted(target: Tensor, logits: Tensor) -> Tensor:
    """Number of starts and ends that count, divided by two."""
    return (_inside(target, logits).sum() / 2).clamp(min=0.5)


def span_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Half the cross entropies of start and end, [B, 2]; 0 where the target is outside the window.
    Label smoothing is over the tokens that are not padding."""
    inside = _inside(target, logits)
    log = F.log_softmax(logits, dim=2)
    there = target.clamp(0, logits.shape[2] - 1)
    loss = -log.gather(2, there[:, :, None])[:, :, 0]
    if smoothing:
        real = logits > torch.finfo(torch.float32).min
        mean = -(log.masked_fill(~real, 0.0).sum(2) / real.sum(2))
        loss = (1 - smoothing) * loss + smoothing * mean
    return 0.5 * loss * inside


@dataclass
class Answers:
    """The best span of every question so far, over all its windows.

    The `n_best` most likely starts and ends of each window are combined, as in the program of
    BERT's authors. A span counts if it lies in the context, is at most `max_answer` tokens long,
    and begins at a token for which no other window has more context. Ties go to the first.
    """

    split: QuestionSplit
    n_best: int = 20
    max_answer: int = 30
    _found: dict[int, tuple[float, int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("question", "offsets", "best", "length")
        self._of = {name: self.split.features[name].numpy() for name in names}

    def add(self, window: int, logits: Logits) -> None:
        """Take the logits [2, T] of a window into account."""
        length = int(self._of["length"][window])
        start, end = (_top(values[:length], self.n_best) for values in logits)
        offsets, best = self._of["offsets"][window], self._of["best"][window]
        start = start[best[start]]
        end = end[offsets[end, 0] >= 0]
        if not len(start) or not len(end):
            return
        tokens = end[None] - start[:, None] + 1
        score = logits[0][start][:, None] + logits[1][end][None]
        score = np.where((tokens >= 1) & (tokens <= self.max_answer), score, -np.inf)
        i, j = np.unravel_index(int(score.argmax()), score.shape)
        question, value = int(self._of["question"][window]), float(score[i, j])
        if value > self._found.get(question, (-np.inf, 0, 0))[0]:
            first, last = offsets[start[i]][0], offsets[end[j]][1]
            self._found[question] = (value, int(first), int(last))

    def texts(self) -> list[str]:
        """One answer per question, cut from its context; empty if no span counts."""
        nothing = (0.0, 0, 0)
        return [
            key.context[slice(*self._found.get(row, nothing)[1:])]
            for row, key in enumerate(self.split.questions)
        ]


def _top(values: Logits, count: int) -> npt.NDArray[np.int64]:
    """Positions of the largest values; ties in order of position."""
    return np.argsort(-values, kind="stable")[:count]
