"""Augmentation of a whole batch at once, on the batch's device, without waiting for the device.

`draw` makes the random numbers, as one tensor per augmentation with one row per example; `apply`
then computes the pixels. So a batch depends only on its rows, not on the order of calls.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from pipeline.data.config import Augmentation, ColorJitter, Flip, Lighting, PadCrop
from pipeline.data.config import RandomResizedCrop as ResizedCrop

ATTEMPTS = 10
_LUMA = (0.2989, 0.5870, 0.1140)  # ITU-R 601, as torchvision's rgb_to_grayscale
# Principal components of ImageNet's RGB values in [0, 1]: the published AlexNet constants.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


@dataclass(frozen=True)
class Transform:
    """How uint8 images become network input: augmentation, size, statistics."""

    augment: tuple[Augmentation, ...]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def seeded(*key: int) -> Generator:
    """A CPU generator seeded by `key`, independent of torch's global one."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:4], "little"))


# --- pad and crop ---------------------------------------------------------------------------


def _draw_pad_crop(op: PadCrop, n: int, g: Generator) -> Tensor:
    return torch.randint(0, 2 * op.padding + 1, (n, 2), generator=g)


def _pad_crop(op: PadCrop, images: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut rows `offsets[:, 0]` and columns `offsets[:, 1]` onward out of the padded images.

    Every row of every plane is contiguous in the padded batch, so one gather of whole rows is
    enough (10x faster than a gather of pixels).
    """
    del size
    n, c, h, w = images.shape
    padded = functional.pad(images, (op.padding,) * 4)
    height, width = padded.shape[-2:]
    device = images.device
    planes = torch.arange(n * c, device=device).view(n, c, 1) * height
    rows = planes + torch.arange(h, device=device) + offsets[:, 0].view(n, 1, 1)
    starts = rows * width + offsets[:, 1].view(n, 1, 1)
    windows = padded.view(-1).as_strided((padded.numel() - w + 1, w), (1, 1))
    return windows[starts.view(-1)].view(n, c, h, w)


# --- flip -----------------------------------------------------------------------------------


def _draw_flip(op: Flip, n: int, g: Generator) -> Tensor:
    return torch.rand(n, generator=g) < op.probability


def _flip(op: Flip, images: Tensor, flipped: Tensor, size: tuple[int, int]) -> Tensor:
    """Take each image from the batch or from its mirror. Copying whole images is faster than
    `where`."""
    del op, size
    n = len(images)
    both = torch.cat([images, images.flip(-1)])
    return both.index_select(0, torch.arange(n, device=images.device) + n * flipped)


# --- random resized crop --------------------------------------------------------------------


def _draw_resized_crop(op: ResizedCrop, n: int, g: Generator) -> Tensor:
    del op
    return torch.rand(n, 4 * ATTEMPTS, generator=g)


def crop_boxes(op: ResizedCrop, uniforms: Tensor, height: int, width: int) -> Tensor:
    """Boxes (top, left, height, width), int64 [N, 4], from uniforms [N, 4 * ATTEMPTS].

    Takes the first of ten (area, ratio) pairs that fits or, if none does, the largest central box
    with an allowed ratio, like torchvision's RandomResizedCrop.
    """
    area, ratio, top, left = uniforms.double().view(len(uniforms), 4, ATTEMPTS).unbind(1)
    low, high = (math.log(r) for r in op.ratio)
    area = height * width * (op.scale[0] + area * (op.scale[1] - op.scale[0]))
    ratio = torch.exp(low + ratio * (high - low))
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    top, left = (top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()
    boxes = torch.stack([top, left, h, w], dim=-1)
    first = fits.to(torch.uint8).argmax(1)
    chosen = boxes.gather(1, first.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1)
    found = fits.any(1)
    central = _central_box(op, height, width)
    columns = [torch.where(found, chosen[:, i], float(c)) for i, c in enumerate(central)]
    return torch.stack(columns, 1).to(torch.int64)


def _central_box(op: ResizedCrop, height: int, width: int) -> tuple[int, int, int, int]:
    h, w = height, width
    if width / height < op.ratio[0]:
        h = round(width / op.ratio[0])
    elif width / height > op.ratio[1]:
        w = round(height * op.ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def _resampling(start: Tensor, length: Tensor, old: int, new: int) -> Tensor:
    """Matrices [N, new, old] that scale `length` pixels from `start` to `new` pixels.

    Bilinear with antialiasing: the triangle filter is as wide as the step between new pixels and
    does not extend beyond the box.
    """
    device = start.device
    start, length = start.float().view(-1, 1, 1), length.float().view(-1, 1, 1)
    step = length / new
    centres = start + (torch.arange(new, device=device).view(1, -1, 1) + 0.5) * step
    pixels = torch.arange(old, device=device).view(1, 1, -1) + 0.5
    weights = (1 - (pixels - centres).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixels > start) & (pixels < start + length))
    return weights / weights.sum(-1, keepdim=True)


def _resized_crop(
    op: ResizedCrop, images: Tensor, uniforms: Tensor, size: tuple[int, int]
) -> Tensor:
    height, width = images.shape[-2:]
    top, left, h, w = crop_boxes(op, uniforms, height, width).unbind(1)
    down = _resampling(top, h, height, size[0]).unsqueeze(1)
    across = _resampling(left, w, width, size[1]).transpose(1, 2).unsqueeze(1)
    return down @ images.float() @ across


# --- colour ---------------------------------------------------------------------------------


def _draw_jitter(op: ColorJitter, n: int, g: Generator) -> Tensor:
    amounts = torch.tensor([op.brightness, op.contrast, op.saturation])
    factors = 1 + amounts * (2 * torch.rand(n, 3, generator=g) - 1)
    order = torch.rand(n, 3, generator=g).argsort(1)
    return torch.cat([factors, order], 1)


def _jitter(op: ColorJitter, images: Tensor, drawn: Tensor, size: tuple[int, int]) -> Tensor:
    """Brightness, contrast and saturation blend the image with black, with its mean grey level and
    with its own grey version."""
    del op, size
    images = images.float()
    factors, order = drawn[:, :3], drawn[:, 3:].to(torch.int64)
    for turn in range(3):
        which = order[:, turn].view(-1, 1, 1, 1)
        red, green, blue = torch.split(images, 1, dim=1)
        grey = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
        anchor = torch.where(which == 1, grey.mean((1, 2, 3), keepdim=True), grey)
        anchor = anchor * (which != 0)
        factor = factors.gather(1, order[:, turn : turn + 1]).view(-1, 1, 1, 1)
        images = torch.lerp(anchor.expand_as(images), images, factor).clamp(0, 255)
    return images


def _draw_lighting(op: Lighting, n: int, g: Generator) -> Tensor:
    alpha = op.std * torch.randn(n, 3, generator=g)
    return 255 * (alpha * torch.tensor(_EIGENVALUES)) @ torch.tensor(_EIGENVECTORS).T


def _lighting(op: Lighting, images: Tensor, shift: Tensor, size: tuple[int, int]) -> Tensor:
    del op, size
    return images.float() + shift.view(-1, 3, 1, 1)


# --- all ------------------------------------------------------------------------------------

_Draw = Callable[[Any, int, Generator], Tensor]
_Apply = Callable[[Any, Tensor, Tensor, tuple[int, int]], Tensor]
_OPS: dict[str, tuple[_Draw, _Apply]] = {
    "pad_crop": (_draw_pad_crop, _pad_crop),
    "flip": (_draw_flip, _flip),
    "random_resized_crop": (_draw_resized_crop, _resized_crop),
    "color_jitter": (_draw_jitter, _jitter),
    "lighting": (_draw_lighting, _lighting),
}


def draw(op: Augmentation, n: int, generator: Generator) -> Tensor:
    """The random numbers of `op` for `n` examples, one row each, on the CPU."""
    return _OPS[op.name][0](op, n, generator)


def apply(op: Augmentation, images: Tensor, drawn: Tensor, size: tuple[int, int]) -> Tensor:
    """`op` on images [N, C, H, W] with values 0..255 and the rows `drawn` for them.

    `size` is the output size of an augmentation that scales.
    """
    return _OPS[op.name][1](op, images, drawn, size)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Values 0..255 to float32 (x / 255 - mean) / std; `mean` and `std` are [1, C, 1, 1].

    With this order of operations the result is bit-equal to torchvision's ToTensor and Normalize.
    """
    return images.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)
