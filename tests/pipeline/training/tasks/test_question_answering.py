"""Question answering: the loss and the best span over all windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.loaders import make_eval_batches
from pipeline.data.squad.prepared import QuestionKey, QuestionSplit
from pipeline.registry import build_model
from pipeline.training.tasks.question_answering import Answers, QuestionAnswering, span_loss
from pipeline.training.tasks.task import TASKS
from tests.squad_world import TINY, windows

TASK = QuestionAnswering()


class Fixed(nn.Module):
    """Returns given logits, window after window."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.at = logits, 0

    def forward(self, inputs: Tensor) -> Tensor:
        first, self.at = self.at, self.at + len(inputs)
        return self.logits[first : self.at, :, : inputs.shape[2]]


def test_the_task_is_registered():
    assert TASKS["question_answering"](2, 0.1) == QuestionAnswering(2, 0.1)


def test_loss_is_the_mean_of_both_cross_entropies_over_what_is_no_padding():
    inputs, logits = windows(3, 9), torch.randn(3, 2, 9)
    target = torch.tensor([[1, 2], [0, 0], [4, 5]])
    loss, sums = TASK.loss(Fixed(logits), (inputs, target))
    real = logits[2:, :, :6]
    pieces = [
        F.cross_entropy(piece[:, k], wanted[:, k], reduction="sum")
        for piece, wanted in ((logits[:2], target[:2]), (real, target[2:]))
        for k in (0, 1)
    ]
    torch.testing.assert_close(loss, sum(pieces) / 6)
    longer = torch.cat([logits, torch.full((3, 2, 4), 50.0)], 2)  # more padding changes nothing
    padded = F.pad(inputs, (0, 4))
    torch.testing.assert_close(TASK.loss(Fixed(longer), (padded, target))[0], loss)
    best = logits.argmax(2)
    assert int(TASK.loss(Fixed(logits), (inputs[:2], best[:2]))[1]["span"]) == 2
    assert int(sums["span"]) <= 1


def test_targets_outside_the_window_are_ignored():
    logits, target = torch.randn(2, 2, 6), torch.tensor([[1, 6], [-1, 3]])
    found = span_loss(logits, target)
    assert found[0, 1] == found[1, 0] == 0
    inputs = windows(2, 6)
    inputs[:, 1] = 1
    loss, _ = TASK.loss(Fixed(logits), (inputs, target))
    a = F.cross_entropy(logits[:1, 0], target[:1, 0])
    b = F.cross_entropy(logits[1:, 1], target[1:, 1])
    torch.testing.assert_close(loss, (a + b) / 2)
    nothing, _ = TASK.loss(Fixed(logits), (inputs, torch.full((2, 2), 9)))
    assert nothing == 0


def test_label_smoothing_is_torchs():
    logits, target = torch.randn(4, 2, 7), torch.randint(0, 7, (4, 2))
    ours = span_loss(logits, target, 0.1).sum() / 4
    both = [F.cross_entropy(logits[:, k], target[:, k], label_smoothing=0.1) for k in (0, 1)]
    torch.testing.assert_close(ours, sum(both) / 2)


def split_of(
    offsets: list[list[tuple[int, int]]], questions: list[int], context: str
) -> QuestionSplit:
    """Windows by the characters of their tokens; (-1, -1) = not of the context."""
    table = torch.tensor(offsets, dtype=torch.int32)
    count, length, _ = table.shape
    features = {
        "ids": torch.zeros(count, length, dtype=torch.int32),
        "length": torch.full((count,), length, dtype=torch.int32),
        "question": torch.tensor(questions, dtype=torch.int32),
        "offsets": table,
        "best": table[:, :, 0] >= 0,
    }
    keys = tuple(QuestionKey(str(i), context, ("x",)) for i in range(max(questions) + 1))
    return QuestionSplit(features, keys)


OUT = (-1, -1)


def answer(split: QuestionSplit, *logits: tuple[list[float], list[float]], **limits: int) -> str:
    found = Answers(split, **limits)
    for window, pair in enumerate(logits):
        found.add(window, np.array(pair))
    return found.texts()[0]


def test_the_best_span_that_counts_wins():
    split = split_of([[OUT, (0, 1), (2, 3), (4, 5), (6, 7)]], [0], "a b c d")
    assert answer(split, ([9, 1, 2, 0, 0], [9, 0, 0, 3, 0])) == "b c"  # [CLS] is no answer
    assert answer(split, ([0, 0, 0, 0, 5], [0, 5, 0, 0, 1])) == "d"  # ends do not precede starts
    assert answer(split, ([0, 5, 0, 0, 0], [0, 0, 0, 0, 5]), max_answer=3) != "a b c d"
    assert answer(split, ([0, 5, 0, 0, 0], [0, 0, 0, 0, 5]), max_answer=4) == "a b c d"
    assert answer(split, ([0, 1, 1, 1, 1], [0, 1, 1, 1, 1])) == "a"  # of equal ones the first


def test_only_the_likeliest_starts_and_ends_are_combined():
    split = split_of([[OUT, (0, 1), (2, 3), (4, 5), (6, 7)]], [0], "a b c d")
    logits = ([9, 0, 1, 0, 0], [9, 0, 0, 1, 0])
    assert answer(split, logits, n_best=1) == ""  # both are [CLS]
    assert answer(split, logits, n_best=2) == "b c"


def test_windows_of_one_question_compete_and_each_token_starts_in_its_best_window():
    rows = [[OUT, (0, 1), (2, 3), (4, 5)], [OUT, (4, 5), (6, 7), (8, 9)]]
    split = split_of(rows, [0, 0], "a b c d e")
    low, high = ([0, 1, 0, 0], [0, 1, 0, 0]), ([0, 0, 2, 0], [0, 0, 2, 0])
    assert answer(split, low, high) == "d"
    assert answer(split, high, low) == "b"
    split.features["best"][1, 1] = False
    assert answer(split, low, ([0, 7, 0, 0], [0, 7, 0, 0])) != "c"
    assert answer(split, ([0, 0, 0, 7], [0, 0, 0, 7]), low) == "c"


def brute(split: QuestionSplit, logits: np.ndarray, n_best: int, max_answer: int) -> str:
    """Every pair of every window, in plain words."""
    best, text = -np.inf, ""
    for window, (start, end) in enumerate(logits):
        ranked = [
            sorted(range(len(v)), key=lambda i, v=v: (-v[i], i))[:n_best] for v in (start, end)
        ]
        for i in ranked[0]:
            for j in ranked[1]:
                offsets = split.features["offsets"][window]
                if offsets[i, 0] < 0 or offsets[j, 0] < 0 or not split.features["best"][window, i]:
                    continue
                if i <= j < i + max_answer and start[i] + end[j] > best:
                    best = start[i] + end[j]
                    text = split.questions[0].context[offsets[i, 0] : offsets[j, 1]]
    return text


@pytest.mark.parametrize("seed", range(20))
def test_as_trying_every_pair(seed):
    random = np.random.default_rng(seed)
    context = " ".join("abcdefghijkl")
    row = [OUT, OUT, *((2 * i, 2 * i + 1) for i in range(12))]
    split = split_of([row, row], [0, 0], context)
    split.features["best"] &= torch.from_numpy(random.random((2, 14)) < 0.8)
    logits = random.normal(size=(2, 2, 14)).round(1)
    limits = {"n_best": int(random.integers(1, 8)), "max_answer": int(random.integers(1, 6))}
    assert answer(split, *logits, **limits) == brute(split, logits, **limits)


def test_a_network_that_knows_the_answers_scores_100(prepared):
    batches = make_eval_batches(prepared, prepared.test(), batch_size=7)
    target = prepared.test().features["target"].long()
    logits = 9.0 * F.one_hot(target, 32).float()
    logits[target[:, 1] == 0] = 0.0
    network = Fixed(logits).train()
    found = TASK.scores(network, batches)
    assert found["exact_match"] == found["f1"] == 100.0
    assert network.training
    assert TASK.scores(Fixed(torch.zeros_like(logits)), batches)["exact_match"] < 50.0


def test_scores_do_not_depend_on_the_batch(prepared):
    model = build_model("bert", "encoder_qa", prepared.info, TINY)
    found = [
        TASK.scores(model, make_eval_batches(prepared, prepared.test(), batch_size=size))
        for size in (1, 5, 64)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert found[0] == pytest.approx(found[2], abs=1e-4)
