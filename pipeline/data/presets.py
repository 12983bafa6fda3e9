"""Usual augmentation and statistics of each data set, and the presets of papers.

Pixels are scaled to [0, 1] before these statistics apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Block = Mapping[str, Any]


def _statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> Block:
    return {"mean": mean, "std": std}


IMAGENET = _statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The deviations are means over images of each image's own deviation, as in most CIFAR-10 papers;
# over all pixels they would be (0.2470, 0.2435, 0.2616).
CIFAR10 = _statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = _statistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
MNIST = _statistics((0.1307,), (0.3081,))
FASHION_MNIST = _statistics((0.2860,), (0.3530,))
SVHN = _statistics((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
TINY_IMAGENET = _statistics((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))
HALF = _statistics((0.5,), (0.5,))

CROP_FLIP = ("pad_crop", "flip")
RESIZED_CROP_FLIP = ("random_resized_crop", "flip")

DEFAULTS: Mapping[str, Block] = {
    "digits": {"augment": (), "normalise": "computed"},
    "cifar10": {"augment": CROP_FLIP, "normalise": CIFAR10},
    "cifar100": {"augment": CROP_FLIP, "normalise": CIFAR100},
    "mnist": {"augment": (), "normalise": MNIST},
    "fashion_mnist": {"augment": (), "normalise": FASHION_MNIST},
    "svhn": {"augment": (), "normalise": SVHN},
    "tiny_imagenet": {"augment": CROP_FLIP, "normalise": TINY_IMAGENET},
    "imagefolder": {"augment": RESIZED_CROP_FLIP, "normalise": IMAGENET, "size": 224},
    "squad": {"augment": (), "normalise": "computed"},
    "squad_reconstructed": {"augment": (), "normalise": "computed"},
}
"""All data sets, and the meaning of "auto" for each."""

_SCRATCH_MOBILE = {"name": "random_resized_crop", "scale": (0.25, 1.0)}
_SCRATCH_RETRAIN = ("color_jitter", "lighting", "flip")

PRESETS: Mapping[str, Mapping[str, Block]] = {
    # OTO v1 trains CIFAR-10 with ImageNet's statistics.
    "oto": {
        "cifar10": {"augment": CROP_FLIP, "normalise": IMAGENET},
        "imagefolder": {"augment": RESIZED_CROP_FLIP, "normalise": IMAGENET, "size": 224},
    },
    # SFW-pruning uses CIFAR-10's statistics for CIFAR-100 too, and Tiny ImageNet at 32 x 32.
    "sfw-pruning": {
        "cifar10": {"augment": CROP_FLIP, "normalise": CIFAR10},
        "cifar100": {"augment": CROP_FLIP, "normalise": CIFAR10},
        "mnist": {"augment": (), "normalise": MNIST},
        "svhn": {"augment": (), "normalise": HALF, "size": 32},
        "tiny_imagenet": {"augment": RESIZED_CROP_FLIP, "normalise": TINY_IMAGENET, "size": 32},
    },
    # Pruning from Scratch: learning the gates, and retraining the narrow ImageNet networks.
    "pruning-from-scratch": {
        "cifar10": {"augment": CROP_FLIP, "normalise": CIFAR10},
        "imagefolder": {"augment": (_SCRATCH_MOBILE, "flip"), "normalise": IMAGENET, "size": 224},
    },
    "pruning-from-scratch-mobile": {
        "imagefolder": {
            "augment": (_SCRATCH_MOBILE, *_SCRATCH_RETRAIN),
            "normalise": IMAGENET,
            "size": 224,
        },
    },
    "pruning-from-scratch-resnet50": {
        "imagefolder": {
            "augment": ("random_resized_crop", *_SCRATCH_RETRAIN),
            "normalise": IMAGENET,
            "size": 224,
        },
    },
    # Lottery tickets and early-bird.
    "tickets": {
        "cifar10": {"augment": CROP_FLIP, "normalise": CIFAR10},
        "mnist": {"augment": (), "normalise": MNIST},
    },
    # The published CIFAR-10 ResNets with option-A shortcuts.
    "resnet-option-a": {"cifar10": {"augment": CROP_FLIP, "normalise": IMAGENET}},
}


def _known(what: str, name: Any, table: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{what}: unknown {name!r} (known: {', '.join(sorted(table))})")
    return table[name]


def _words(augment: Any) -> Any:
    if isinstance(augment, str) and augment != "none":
        raise ValueError(
            f"augment: unknown {augment!r}, which is no list such as [pad_crop, flip] "
            "(known: auto, none)"
        )
    return () if augment == "none" else augment


def resolve(block: Block) -> dict[str, Any]:
    """The block with its preset and every "auto" resolved.

    Raises:
        ValueError: unknown data set, preset or word; lists the known ones.
    """
    if "name" not in block:
        return dict(block)  # pydantic reports the missing key
    defaults = _known("name", block["name"], DEFAULTS)
    preset: Block = {}
    if block.get("preset") is not None:
        per_set = _known("preset", block["preset"], PRESETS)
        preset = _known(f"preset {block['preset']!r} for data", block["name"], per_set)
    full: dict[str, Any] = {**defaults, **preset, **block}
    for key in ("augment", "normalise"):
        if full[key] == "auto":
            full[key] = defaults[key]
    full["augment"] = _words(full["augment"])
    if isinstance(full["normalise"], str) and full["normalise"] != "computed":
        full["normalise"] = _known(
            "normalise", full["normalise"], {"imagenet": IMAGENET, "auto": None, "computed": None}
        )
    return full
