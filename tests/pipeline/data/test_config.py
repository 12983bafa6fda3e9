"""The `data:` block: presets, "auto", and refusals that name the way out."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.data.config import SQUAD, DataConfig, Flip, PadCrop, RandomResizedCrop, Statistics
from pipeline.data.datasets import DATASETS
from pipeline.data.presets import DEFAULTS, PRESETS


def test_every_registered_data_set_has_defaults() -> None:
    assert {*DATASETS, *SQUAD} == set(DEFAULTS)


@pytest.mark.parametrize(("preset", "name"), [(p, n) for p in PRESETS for n in PRESETS[p]])
def test_every_preset_validates_and_survives_a_round_trip(preset: str, name: str) -> None:
    config = DataConfig(name=name, preset=preset)
    assert DataConfig(**config.model_dump()) == config


def test_presets_give_each_paper_its_statistics_and_augmentation() -> None:
    oto = DataConfig(name="cifar10", preset="oto")
    assert oto.augment == (PadCrop(padding=4), Flip(probability=0.5))
    assert oto.normalise == Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    sfw = DataConfig(name="cifar100", preset="sfw-pruning")
    assert sfw.normalise == Statistics(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    svhn = DataConfig(name="svhn", preset="sfw-pruning")
    assert svhn.augment == ()
    assert svhn.normalise == Statistics(mean=(0.5,), std=(0.5,))
    tiny = DataConfig(name="tiny_imagenet", preset="sfw-pruning")
    assert tiny.augment == (RandomResizedCrop(scale=(0.08, 1.0)), Flip())
    assert tiny.size == 32
    gates = DataConfig(name="imagefolder", preset="pruning-from-scratch")
    assert gates.augment[0] == RandomResizedCrop(scale=(0.25, 1.0))
    assert DataConfig(name="cifar10", preset="resnet-option-a").normalise == oto.normalise


def test_what_the_block_says_overrules_the_preset() -> None:
    config = DataConfig(
        name="cifar10", preset="oto", augment=["flip"], normalise={"mean": [0.5], "std": [1]}
    )
    assert config.augment == (Flip(),)
    assert config.normalise == Statistics(mean=(0.5,), std=(1.0,))


def test_words() -> None:
    config = DataConfig(name="cifar10", augment="none", normalise="imagenet")
    assert config.augment == ()
    assert config.normalise == Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    auto = DataConfig(name="cifar10", augment="auto", normalise="auto")
    assert auto == DataConfig(name="cifar10")
    assert DataConfig(name="mnist", normalise="computed").normalise == "computed"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "cifar11"}, "unknown 'cifar11' .known: cifar10, cifar100, digits"),
        ({"name": "cifar10", "preset": "otto"}, "unknown 'otto' .known: oto, pruning-from-scratch"),
        ({"name": "digits", "preset": "oto"}, "preset 'oto' for data: unknown 'digits'"),
        ({"name": "cifar10", "augment": "crop"}, "augment: unknown 'crop'"),
        ({"name": "cifar10", "augment": ["crop"]}, "'pad_crop', 'flip'"),
        ({"name": "cifar10", "normalise": "cifar"}, "normalise: unknown 'cifar'"),
        ({"name": "cifar10", "normalise": {"mean": [0.5, 0.5], "std": [1]}}, "2 means but 1"),
        ({"name": "cifar10", "valsize": 3}, "valsize"),
        ({"name": "cifar10", "val_size": 0}, "val_size"),
        ({"name": "cifar10", "limit": -1}, "limit"),
        ({"name": "cifar10", "root": None}, "needs a folder"),
        ({"name": "imagefolder", "normalise": "computed"}, "decode the whole folder"),
        ({"name": "imagefolder", "size": None}, "imagefolder needs the side"),
        ({"name": "mnist", "augment": ["lighting"]}, "rgb: true"),
        ({"preset": "oto"}, "name"),
        (
            {"name": "cifar10", "augment": [{"name": "random_resized_crop", "scale": [1, 0.5]}]},
            "not an interval",
        ),
    ],
)
def test_bad_blocks_are_refused_in_plain_words(block: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(**block)


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        DataConfig(name="digits").val_size = 3  # type: ignore[misc]


def test_statistics_serve_the_channels() -> None:
    one = Statistics(mean=(0.5,), std=(0.25,))
    assert one.for_channels(3) == Statistics(mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(ValueError, match="3 means for images of 1 channel"):
        one.for_channels(3).for_channels(1)
