"""Vectorised augmentation, compared with simple references and torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.data.augment import apply, crop_boxes, draw, normalise, seeded
from pipeline.data.config import ColorJitter, Flip, Lighting, PadCrop, RandomResizedCrop


def images(n: int, c: int = 3, h: int = 8, w: int = 8) -> Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=seeded(1))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)
)
def test_pad_crop_cuts_the_window_it_drew(n: int, c: int, h: int, w: int, padding: int) -> None:
    op, batch = PadCrop(padding=padding), images(n, c, h, w)
    offsets = draw(op, n, seeded(n, h, w))
    result = apply(op, batch, offsets, (h, w))
    for i, (top, left) in enumerate(offsets.tolist()):
        for ch in range(c):
            for y in range(h):
                for x in range(w):
                    row, column = y + top - padding, x + left - padding
                    inside = 0 <= row < h and 0 <= column < w
                    expected = batch[i, ch, row, column] if inside else 0
                    assert result[i, ch, y, x] == expected


def test_pad_crop_offsets_cover_the_whole_range_evenly() -> None:
    offsets = draw(PadCrop(padding=4), 9000, seeded(0))
    for axis in (0, 1):
        counts = torch.bincount(offsets[:, axis], minlength=9)
        assert len(counts) == 9
        assert (counts - 1000).abs().max() < 150  # 5 sigma


def test_flip_mirrors_exactly_the_chosen() -> None:
    batch = images(64)
    chosen = draw(Flip(), 64, seeded(3))
    result = apply(Flip(), batch, chosen, (8, 8))
    for i in range(64):
        expected = torch.from_numpy(np.fliplr(batch[i].permute(1, 2, 0).numpy()).copy())
        assert torch.equal(result[i], expected.permute(2, 0, 1) if chosen[i] else batch[i])


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_flip_probability(probability: float) -> None:
    share = draw(Flip(probability=probability), 10_000, seeded(4)).float().mean().item()
    assert share == pytest.approx(probability, abs=5 * math.sqrt(0.25 / 10_000))
    if probability in (0, 1):
        assert share == probability


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 90), (333, 20), (20, 333), (1, 1)])
def test_boxes_lie_inside_and_have_the_area_and_ratio_asked_for(height: int, width: int) -> None:
    op = RandomResizedCrop()
    boxes = crop_boxes(op, draw(op, 2000, seeded(5)), height, width)
    top, left, h, w = boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    if height == width == 64:
        area = (h * w) / (height * width)
        assert area.min() > 0.07
        assert area.mean() == pytest.approx(0.5, abs=0.05)
        assert (w / h).min() >= 0.7
        assert (w / h).max() <= 1.4
        assert (w / h).log().mean() == pytest.approx(0, abs=0.02)


def test_boxes_follow_torchvision_s_distribution() -> None:
    from torchvision.transforms import RandomResizedCrop as Theirs

    op, n = RandomResizedCrop(scale=(0.25, 1.0)), 3000
    ours = crop_boxes(op, draw(op, n, seeded(6)), 40, 60).float()
    blank = torch.zeros(3, 40, 60)
    torch.manual_seed(0)
    theirs = torch.tensor(
        [Theirs.get_params(blank, list(op.scale), list(op.ratio)) for _ in range(n)]
    ).float()
    for column in range(4):
        spread = theirs[:, column].std()
        assert (ours[:, column].mean() - theirs[:, column].mean()).abs() < 0.12 * spread
        assert (ours[:, column].std() - spread).abs() < 0.12 * spread


@pytest.mark.parametrize("size", [(6, 6), (12, 10), (20, 20)])
def test_resized_crop_equals_crop_then_antialiased_resize(size: tuple[int, int]) -> None:
    op, batch = RandomResizedCrop(), images(24, 3, 16, 12)
    uniforms = draw(op, 24, seeded(8))
    result = apply(op, batch, uniforms, size)
    assert result.shape == (24, 3, *size)
    for i, (top, left, h, w) in enumerate(crop_boxes(op, uniforms, 16, 12).tolist()):
        part = batch[i : i + 1, :, top : top + h, left : left + w].float()
        expected = torch.nn.functional.interpolate(part, size, mode="bilinear", antialias=True)
        torch.testing.assert_close(result[i : i + 1], expected, atol=2e-2, rtol=0)


def test_normalise_equals_torchvision_bit_for_bit() -> None:
    from torchvision.transforms import Normalize

    every_value = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    ours = normalise(
        every_value, torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
    )
    theirs = Normalize(mean, std)(every_value.float().div(255))
    assert torch.equal(ours, theirs)


def test_normalise_leaves_float_images_alone() -> None:
    one = torch.ones(1, 1, 1, 1)
    batch = 255 * torch.ones(1, 1, 2, 2)
    assert torch.equal(normalise(batch, one, one), torch.zeros(1, 1, 2, 2))
    assert batch.eq(255).all()


def test_jitter_equals_torchvision_in_the_order_drawn() -> None:
    from torchvision.transforms import functional as tv

    op, batch = ColorJitter(), images(12)
    drawn = draw(op, 12, seeded(9))
    assert ((drawn[:, :3] >= 0.6) & (drawn[:, :3] <= 1.4)).all()
    result = apply(op, batch, drawn, (8, 8))
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for i in range(12):
        expected = batch[i].float() / 255
        for turn in drawn[i, 3:].long().tolist():
            expected = steps[turn](expected, drawn[i, turn].item())
        torch.testing.assert_close(result[i] / 255, expected, atol=1e-5, rtol=0)


def test_lighting_shifts_along_the_colour_axes() -> None:
    op = Lighting(std=0.1)
    shifts = draw(op, 20_000, seeded(10)) / 255
    vectors = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    along = (shifts @ vectors).std(0)
    torch.testing.assert_close(
        along, 0.1 * torch.tensor([0.2175, 0.0188, 0.0045]), rtol=0.03, atol=1e-5
    )
    batch = images(2)
    moved = apply(op, batch, draw(op, 2, seeded(1)), (8, 8)) - batch.float()
    assert torch.allclose(moved, moved[:, :, :1, :1].expand_as(moved), atol=1e-3)


def test_seeded_depends_on_every_part_of_the_key() -> None:
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 11), (1, 1, 0)]
    draws = {tuple(torch.rand(3, generator=seeded(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)
