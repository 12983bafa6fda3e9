"""Parameter and MAC counts of every network, to the unit.

Sources: the counts published or printed by the code of OTO (Chen et al. 2021), SFW-pruning (Miao et
al. 2022), Pruning from Scratch (Wang et al. 2020) and the Early-Bird/lottery-ticket repositories.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.mobilenet import InvertedResidual
from pipeline.data.info import DatasetInfo
from pipeline.registry import build_model

IMAGENET = (3, 224, 224)
MNIST = (1, 28, 28)


class Row(NamedTuple):
    network: str
    args: dict[str, object]
    params: int
    macs: int | None = None
    classes: int = 10
    shape: tuple[int, int, int] = (3, 32, 32)


ROWS = [
    # OTO, v1 and v2: its counter takes convolutions and linear layers.
    Row("vgg/vgg16", {}, 15_245_130, 313_725_952),
    Row("vgg/vgg16_bn", {}, 15_253_578, 313_725_952),
    Row("resnet_cifar/resnet18", {}, 11_173_962, 555_422_720),
    Row("resnet_cifar/resnet50", {}, 23_520_842, 1_297_829_888),
    Row("resnet_imagenet/resnet50", {}, 25_557_032, 4_089_184_256, 1000, IMAGENET),
    # SFW-pruning
    Row("resnet_cifar/resnet18", {}, 11_220_132, classes=100),
    Row("resnet_cifar/resnet18", {}, 11_271_432, classes=200),
    Row("vgg/vgg16_bn_linear", {}, 14_728_266),
    Row("vgg/vgg16_bn_linear", {}, 14_774_436, classes=100),
    Row("vgg/vgg16_bn_linear", {}, 14_825_736, classes=200),
    # SynFlow (OpenLTH's VGG-16): 14,761,664 weights, 4,324 biases, 8,448 of BatchNorm
    Row("vgg/vgg16_bn_lth", {}, 14_761_664 + 4_324 + 8_448, 313_247_744, classes=100),
    Row("preact/preact_resnet18", {}, 11_172_170),
    Row("preact/preact_resnet18", {}, 11_218_340, classes=100),
    Row("mlp/mlp", {}, 118_282, 784 * 128 + 128 * 128 + 128 * 10, shape=MNIST),
    # LeNets and Conv-2/4/6: weights of SNIP (Lee et al. 2019), the lottery ticket and Han et al.
    Row("lenet/lenet_300_100", {}, 266_610, 266_200, shape=MNIST),
    Row("lenet/lenet5_caffe", {}, 431_080, 576 * 500 + 64 * 25_000 + 405_000, shape=MNIST),
    Row("lenet/conv2", {}, 4_301_642, 1024 * (1_728 + 36_864) + 256 * (16_384 + 266)),
    Row("lenet/conv4", {}, 2_425_930),
    Row("lenet/conv6", {}, 2_262_602),
    # Network slimming, table 3: 545,810 weights and biases, and 1,600 of BatchNorm.
    Row("mlp/mlp", {"widths": (500, 300), "batch_norm": True}, 545_810 + 1_600, shape=MNIST),
    # Pruning from Scratch: convolutions + linear layer of its counter.
    Row("vgg/vgg11_bn_gap", {}, 9_228_362, 152_764_416 + 5_120),
    Row("vgg/vgg16_bn_gap", {}, 14_724_042, 313_196_544 + 5_120),
    Row("vgg/vgg16_bn_gap", {"width": 80}, 23_001_530, 488_816_640 + 6_400),
    Row("vgg/vgg16_bn_gap", {}, 14_770_212, classes=100),
    Row("vgg/vgg19_bn_gap", {}, 20_035_018, 398_131_200 + 5_120),
    Row("vgg/vgg19_bn_gap", {"width": 80}, 31_299_130, 621_527_040 + 6_400),
    Row("resnet_cifar/resnet20", {}, 272_474, 40_812_544 + 640),
    Row("resnet_cifar/resnet20", {"width": 20}, 424_910, 63_631_360 + 800),
    Row("resnet_cifar/resnet32", {}, 466_906, 69_124_096 + 640),
    Row("resnet_cifar/resnet32", {"width": 20}, 728_430, 107_868_160 + 800),
    Row("resnet_cifar/resnet44", {}, 661_338, 97_435_648 + 640),
    Row("resnet_cifar/resnet56", {}, 855_770, 125_747_200 + 640),
    Row("resnet_cifar/resnet56", {"width": 20}, 1_335_470, 196_341_760 + 800),
    Row("resnet_cifar/resnet110", {}, 1_730_714, 253_149_184 + 640),
    Row("resnet_cifar/resnet110", {"width": 20}, 2_701_310, 395_407_360 + 800),
    Row("resnet_imagenet/resnet50", {"width": 80}, 34_266_600, 5_569_576_960, 1000, IMAGENET),
    Row(
        "resnet_imagenet/resnet50",
        {"width": 80, "multiplier": 1.25},
        39_272_760,
        6_349_271_040 + 2_560_000,
        1000,
        IMAGENET,
    ),
    Row("mobilenet/mobilenet_v1", {}, 4_231_976, 568_740_352, 1000, IMAGENET),
    Row("mobilenet/mobilenet_v1", {"width": 40}, 6_270_840, 879_516_800, 1000, IMAGENET),
    Row("mobilenet/mobilenet_v2", {}, 3_504_872, 300_774_272, 1000, IMAGENET),
    Row("mobilenet/mobilenet_v2", {"width": 40}, 4_380_088, 375_967_840, 1000, IMAGENET),
    Row(
        "mobilenet/mobilenet_v2",
        {"width": 40, "multiplier": 1.25},
        5_044_800,
        458_099_040 + 1_600_000,
        1000,
        IMAGENET,
    ),
    # The public option-A checkpoints: option B less its 1x1 convolutions and their BatchNorms.
    Row("resnet_cifar/resnet20_a", {}, 269_722, 40_813_184 - 2 * 131_072),
    Row("resnet_cifar/resnet32_a", {}, 466_906 - 2_752, 69_124_736 - 2 * 131_072),
    Row("resnet_cifar/resnet44_a", {}, 661_338 - 2_752, 97_436_288 - 2 * 131_072),
    Row("resnet_cifar/resnet56_a", {}, 855_770 - 2_752, 125_747_840 - 2 * 131_072),
    Row("resnet_cifar/resnet110_a", {}, 1_730_714 - 2_752, 253_149_824 - 2 * 131_072),
    # The lottery-ticket repository. Its basic "resnet" of depth 9n + 2 is ours of depth 6n + 2.
    Row("preact/preact_resnet", {"depth": 14}, 175_066, 26_657_408),
    Row("preact/preact_resnet", {"depth": 20}, 272_282, 40_813_184),
    Row("preact/preact_resnet", {"depth": 38}, 563_930, 83_280_512),
    Row("preact/preact_resnet", {"depth": 74}, 1_147_226, 168_215_168),
    Row("preact/preact_resnetb", {"depth": 20}, 219_482, 33_737_216),
    Row("preact/preact_resnetb", {"depth": 29}, 312_218, 47_106_560),
    Row("preact/preact_resnetb", {"depth": 56}, 590_426, 87_214_592),
    Row("preact/preact_resnetb", {"depth": 110}, 1_146_842, 167_430_656),
    # Early-Bird Tickets count the indexes of their channel selections (4,944; 8,080) as parameters.
    Row("preact/preact_resnetb", {"depth": 101}, 1_059_050 - 4_944),
    Row("preact/preact_resnetb", {"depth": 164}, 1_711_338 - 8_080),
    # Ours, on scikit-learn's digits: stem, then pixels * weights per stage, then classifier.
    Row(
        "small/resnet8",
        {},
        77_754,
        9_216 + 64 * 2 * 2_304 + 16 * (4_608 + 9_216 + 512) + 4 * (18_432 + 36_864 + 2_048) + 640,
        shape=(1, 8, 8),
    ),
    Row(
        "small/vgg_small",
        {},
        140_458,
        64 * (288 + 9_216) + 16 * (18_432 + 36_864) + 4 * 73_728 + 1_280,
        shape=(1, 8, 8),
    ),
]


def _build(network: str, args: dict[str, object], info: DatasetInfo) -> nn.Module:
    """The network without memory behind its weights."""
    family, name = network.split("/")
    with torch.device("meta"):
        return build_model(family, name, info, args).eval()


def _macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """MACs of one image; torch's counter counts a multiply-accumulate as 2."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *shape, device="meta"))
    flops: int = counter.get_total_flops()
    return flops // 2


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.network}-{r.args or ''}-{r.classes}")
def test_counts_equal_the_published_ones(row: Row) -> None:
    model = _build(row.network, row.args, DatasetInfo("data", row.shape, row.classes))
    assert sum(p.numel() for p in model.parameters()) == row.params
    if row.macs is not None:
        assert _macs(model, row.shape) == row.macs


@pytest.mark.parametrize(
    ("network", "args", "tensors", "conv_weights", "norm_channels"),
    [
        ("resnet_cifar/resnet18", {}, 62, 11_159_232, 4_800),
        ("vgg/vgg16_bn_linear", {}, 54, 14_710_464, 4_224),
        ("preact/preact_resnet18", {}, 56, None, None),
        ("preact/preact_resnet", {"depth": 14}, None, 173_488, 464),
        ("preact/preact_resnet", {"depth": 20}, None, 270_256, 688),
        ("preact/preact_resnetb", {"depth": 20}, None, 214_192, 1_360),
        ("preact/preact_resnetb", {"depth": 29}, None, 305_584, 2_032),
        ("preact/preact_resnetb", {"depth": 110}, None, 1_128_112, 8_080),
    ],
)
def test_tensors_and_layer_kinds(
    network: str,
    args: dict[str, object],
    tensors: int | None,
    conv_weights: int | None,
    norm_channels: int | None,
) -> None:
    model = _build(network, args, DatasetInfo("cifar10", (3, 32, 32), 10))
    layers = list(model.modules())
    convs = sum(m.weight.numel() for m in layers if isinstance(m, nn.Conv2d))
    norms = sum(m.num_features for m in layers if isinstance(m, nn.BatchNorm2d))
    assert tensors in (None, len(list(model.parameters())))
    assert conv_weights in (None, convs)
    assert norm_channels in (None, norms)


@pytest.mark.parametrize("width", [16, 20])
def test_inner_width_leaves_the_residual_stream(width: int) -> None:
    info = DatasetInfo("cifar10", (3, 32, 32), 10)
    model = _build("resnet_cifar/resnet20", {"inner_width": width}, info)
    assert model.get_parameter("layer3.1.conv1.weight").shape == (4 * width, 64, 3, 3)
    assert model.get_parameter("layer3.1.conv2.weight").shape == (64, 4 * width, 3, 3)


def test_pruned_width_equal_to_the_input_keeps_the_expansion() -> None:
    """Block 1 of MobileNet v2 reads 16 channels; 16 expanded channels are still an expansion."""
    assert hasattr(InvertedResidual(16, 16, 24, 2).branch, "conv1")
    assert not hasattr(InvertedResidual(16, None, 24, 2).branch, "conv1")
