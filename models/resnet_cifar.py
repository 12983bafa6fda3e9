"""Residual networks for small images (He et al. 2016): a 3x3 stem at full resolution.

- `resnet20` ... `resnet110`: three stages of basic blocks, section 4.2 of the paper, with
  projection shortcuts as in Pruning from Scratch (Wang et al., AAAI 2020).
- `resnet20_a` ... `resnet110_a`: the same with parameter-free option-A shortcuts. Keys are those of
  the public CIFAR-10 checkpoints of akamaster/pytorch_resnet_cifar10.
- `resnet18`, `resnet50`: the four-stage ImageNet networks without their strided stem, as in OTO
  (Chen et al., NeurIPS 2021) and Miao et al. (ICLR 2022).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import pad

from models._blocks import (
    BasicBlock,
    Block,
    Bottleneck,
    Stage,
    chain,
    conv,
    he_init,
    head,
    residual_stages,
)
from pipeline.data.info import DatasetInfo
from pipeline.registry import register_model

FAMILY = "resnet_cifar"


class ZeroPad(nn.Module):
    """Option A of He et al. 2016, section 4.2: every `stride`-th pixel; new channels are zero."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out - channels) // 2
        self.after = out - channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def _resnet(
    info: DatasetInfo, block: Block, stem: int, stages: list[Stage], classifier: str
) -> nn.Sequential:
    return chain(
        conv1=conv(info.input_shape[0], stem, 3),
        bn1=nn.BatchNorm2d(stem),
        relu=nn.ReLU(),
        **residual_stages(block, stem, stages),
        **head(stages[-1].out, info.num_classes, classifier),
    )


def _three_stages(
    info: DatasetInfo, depth: int, block: Block, width: int, inner_width: int | None
) -> nn.Sequential:
    blocks = (depth - 2) // 6
    inner = width if inner_width is None else inner_width
    stages = [Stage(blocks, factor * inner, factor * width) for factor in (1, 2, 4)]
    return _resnet(info, block, width, stages, "linear")


def _register_three_stages(depth: int) -> None:
    @register_model(FAMILY, f"resnet{depth}", never_prune=("linear",))
    def projected(
        info: DatasetInfo, *, width: int = 16, inner_width: int | None = None
    ) -> nn.Module:
        """Widths of the first stage: residual stream, and inside the blocks (None: the same)."""
        return he_init(_three_stages(info, depth, BasicBlock, width, inner_width))

    @register_model(FAMILY, f"resnet{depth}_a", never_prune=("linear",))
    def padded(info: DatasetInfo, *, width: int = 16, inner_width: int | None = None) -> nn.Module:
        """Option A; the classifier, too, is initialised from He's normal distribution (fan in)."""
        model = _three_stages(
            info, depth, partial(BasicBlock, shortcut=ZeroPad), width, inner_width
        )
        nn.init.kaiming_normal_(model.get_parameter("linear.weight"))
        return he_init(model, fan="fan_in")


for _depth in (20, 32, 44, 56, 110):
    _register_three_stages(_depth)


@register_model(FAMILY, "resnet18", never_prune=("classifier",))
def resnet18(info: DatasetInfo, *, width: int = 64) -> nn.Module:
    """Torch's default initial weights."""
    stages = [Stage(2, factor * width, factor * width) for factor in (1, 2, 4, 8)]
    return _resnet(info, BasicBlock, width, stages, "classifier")


@register_model(FAMILY, "resnet50", never_prune=("classifier",))
def resnet50(info: DatasetInfo, *, width: int = 64) -> nn.Module:
    """Torch's default initial weights; bottlenecks expand by 4."""
    depths = zip((3, 4, 6, 3), (1, 2, 4, 8), strict=True)
    stages = [Stage(blocks, factor * width, 4 * factor * width) for blocks, factor in depths]
    return _resnet(info, Bottleneck, width, stages, "classifier")
