"""Batches: each example once, resumable at any step, independent of global state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.data.augment import Transform, apply, draw, normalise, seeded
from pipeline.data.batches import Placement
from pipeline.data.config import (
    ColorJitter,
    DataConfig,
    Flip,
    Lighting,
    PadCrop,
    RandomResizedCrop,
)
from pipeline.data.loaders import (
    EvalBatches,
    TrainBatches,
    make_eval_batches,
    make_train_batches,
)
from pipeline.data.prepare import prepare
from pipeline.data.prepared import load_prepared
from pipeline.data.splits import TensorSplit

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PLAIN = Transform((), (8, 8), MEAN, STD)
EVERY = Transform(
    (RandomResizedCrop(), ColorJitter(), Lighting(), PadCrop(padding=2), Flip()), (8, 8), MEAN, STD
)


def batches(split: TensorSplit, transform: Transform = EVERY, **more: object) -> TrainBatches:
    return TrainBatches(split, transform, **{"batch_size": 16, "seed": 3, **more})


def tagged(n: int) -> TensorSplit:
    """Images that are their own number, and labels equal to it."""
    numbers = torch.arange(n)
    return TensorSplit(numbers.to(torch.uint8).view(n, 1, 1, 1).expand(n, 3, 8, 8), numbers)


def pixels(x: Tensor) -> Tensor:
    """The uint8 values behind a normalised batch."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((x * std + mean) * 255).round().to(torch.uint8)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 3))
def test_an_epoch_shows_every_example_once(n: int, batch_size: int, epoch: int) -> None:
    source = batches(tagged(n), PLAIN, batch_size=batch_size)
    seen = list(source.epoch(epoch))
    assert len(seen) == len(source)
    assert [len(y) for _, y in seen[:-1]] == [batch_size] * (len(seen) - 1)
    labels = torch.cat([y for _, y in seen])
    assert sorted(labels.tolist()) == list(range(n))
    shown = torch.cat([x for x, _ in seen])
    assert torch.equal(pixels(shown)[:, 0, 0, 0].long(), labels)


def test_epochs_and_seeds_differ_and_repeat(split: TensorSplit) -> None:
    def labels(seed: int, epoch: int) -> list[int]:
        numbered = TensorSplit(split.images, torch.arange(50))
        return torch.cat([y for _, y in batches(numbered, seed=seed).epoch(epoch)]).tolist()

    orders = {tuple(labels(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert labels(1, 1) == labels(1, 1)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4])
def test_resume_equals_undisturbed(split: TensorSplit, start: int) -> None:
    undisturbed = list(batches(split).epoch(2))
    torch.manual_seed(999)  # the global generator has no say
    source = batches(split)
    list(source.epoch(1))  # nor have batches drawn before
    resumed = list(source.epoch(2, start))
    assert len(resumed) == len(undisturbed) - start
    for (x, y), (a, b) in zip(undisturbed[start:], resumed, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)


def test_the_global_generator_is_left_alone(split: TensorSplit) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(batches(split).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start", [-1, 5])
def test_start_outside_the_epoch(split: TensorSplit, start: int) -> None:
    with pytest.raises(ValueError, match=f"start_step {start} outside an epoch of 4 steps"):
        batches(split).epoch(0, start)


def test_batches_are_the_documented_augmentation_of_the_documented_order(
    split: TensorSplit,
) -> None:
    """The recipe in slow motion: order, then each augmentation's draws, from one generator."""
    ops = (PadCrop(padding=2), Flip())
    transform = replace(EVERY, augment=ops)
    generator = seeded(3, 4)
    order = torch.randperm(50, generator=generator)
    drawn = [draw(op, 50, generator) for op in ops]
    images = split.images[order]
    for op, numbers in zip(ops, drawn, strict=True):
        images = apply(op, images, numbers, (8, 8))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    seen = list(batches(split, transform).epoch(4))
    assert torch.equal(torch.cat([x for x, _ in seen]), normalise(images, mean, std))
    assert torch.equal(torch.cat([y for _, y in seen]), split.labels[order])


def test_the_split_is_never_changed(split: TensorSplit) -> None:
    before = split.images.clone()
    list(batches(split).epoch(0))
    list(batches(split, PLAIN).epoch(0))
    list(EvalBatches(split, PLAIN, batch_size=7))
    assert torch.equal(split.images, before)


def test_placement_decides_form_not_content(split: TensorSplit) -> None:
    plain = next(batches(split).epoch(0))[0]
    last = next(batches(split, placement=Placement(channels_last=True)).epoch(0))[0]
    half = next(batches(split, placement=Placement(dtype=torch.bfloat16)).epoch(0))[0]
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)
    assert plain.is_contiguous()
    assert torch.equal(half, plain.bfloat16())


def test_eval_batches_are_in_order_and_plain(split: TensorSplit) -> None:
    source = EvalBatches(split, EVERY, batch_size=16)
    for _ in range(2):
        seen = list(source)
        assert [len(y) for _, y in seen] == [16, 16, 16, 2]
        assert len(source) == 4
        assert torch.equal(torch.cat([y for _, y in seen]), split.labels)
        assert torch.equal(pixels(torch.cat([x for x, _ in seen])), split.images)


def test_images_are_scaled_to_the_network_s_size(split: TensorSplit) -> None:
    small = replace(PLAIN, size=(4, 4))
    assert next(iter(EvalBatches(split, small, batch_size=5)))[0].shape == (5, 3, 4, 4)
    assert next(batches(split, small).epoch(0))[0].shape == (16, 3, 4, 4)
    cropped = replace(small, augment=(RandomResizedCrop(), Flip()))
    assert next(batches(split, cropped).epoch(0))[0].shape == (16, 3, 4, 4)


def test_make_batches(tmp_path: Path) -> None:
    prepare(DataConfig(name="digits", val_size=100, augment=["pad_crop"]), tmp_path / "d")
    prepared = load_prepared(tmp_path / "d")
    train = make_train_batches(prepared, batch_size=100, seed=0)
    assert len(train) == 14
    x, _ = next(train.epoch(0))
    assert x.shape == (100, 1, 8, 8)
    plain = make_train_batches(prepared, batch_size=100, seed=0, augmented=False)
    assert not torch.equal(next(plain.epoch(0))[0], x)
    images = torch.cat([x for x, _ in plain.epoch(0)])
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert len(make_eval_batches(prepared, prepared.validation(), batch_size=30)) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_same_batches_and_never_waits(split: TensorSplit) -> None:
    here = list(batches(split).epoch(0))
    source = batches(split, placement=Placement(device="cuda"))
    list(source.epoch(0))
    steps = source.epoch(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = list(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (x, y), (a, b) in zip(here, there, strict=True):
        torch.testing.assert_close(a.cpu(), x, atol=2e-3, rtol=0)
        assert torch.equal(b.cpu(), y)
