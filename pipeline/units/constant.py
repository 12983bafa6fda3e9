"""What is left of a layer whose input or output is dead: a constant of the right shape."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pipeline.units.modules import own_shapes
from pipeline.units.rms_norms import norm_kind


class Constant(nn.Module):
    """Stands in for a convolution or linear layer that only ever sees or makes zeros.

    The output is the bias, or zero, at the shape the layer would have given.
    """

    def __init__(
        self, layer: _ConvNd | nn.Linear, channels: int, bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.channels = channels
        self.dims = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
        self.register_parameter("bias", bias)
        self._geometry = None if isinstance(layer, nn.Linear) else _Geometry(layer)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        image = list(x.shape[x.ndim - self.dims :])
        if output_size is not None:
            image = list(output_size[-self.dims :])
        elif self._geometry is not None:
            image = self._geometry(image)
        zeros = x.new_zeros([*x.shape[: x.ndim - self.dims - 1], self.channels, *image])
        if self.bias is None:
            return zeros
        result: Tensor = zeros + self.bias.view(-1, *[1] * self.dims)
        return result

    def extra_repr(self) -> str:
        return f"channels={self.channels}, bias={self.bias is not None}"


class Passing(nn.Identity):
    """Stands in for a norm that only ever sees zeros, with whatever else it is called."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return [*args, *kwargs.values()][0]


class _Geometry:
    """Image size after a convolution."""

    def __init__(self, layer: _ConvNd) -> None:
        kernel, dilation = layer.kernel_size, layer.dilation
        self.stride = layer.stride
        self.reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        self.extra = layer.output_padding if isinstance(layer, _ConvTransposeNd) else None
        if layer.padding == "same":
            self.padding = self.reach
        elif layer.padding == "valid":
            self.padding = [0] * len(kernel)
        else:
            self.padding = [2 * p for p in layer.padding]  # type: ignore[misc, operator]

    def __call__(self, image: list[int]) -> list[int]:
        sizes = zip(image, self.stride, self.reach, self.padding, strict=True)
        if self.extra is None:
            return [(n + p - r - 1) // s + 1 for n, s, r, p in sizes]
        grown = [(n - 1) * s - p + r + 1 for n, s, r, p in sizes]
        return [n + e for n, e in zip(grown, self.extra, strict=True)]


_PLAIN = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.PReLU),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm),
)


def _is_plain(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """One of torch's own layers, or a subclass that computes the same, and no hook does more."""
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__:
        return False
    return any(isinstance(layer, k) and _computes_as(type(layer), k) for k in kinds)


def is_plain_layer(layer: nn.Module) -> bool:
    """A convolution or linear layer of torch's own, or what computes the same."""
    return _is_plain(layer, _PLAIN)


def _computes_as(kind: type[nn.Module], own: type[nn.Module]) -> bool:
    names = ("forward", "_conv_forward")  # a convolution's forward calls the second
    return all(getattr(kind, n, None) is getattr(own, n, None) for n in names)


def folded(layer: nn.Module, dead: dict[str, set[int]]) -> nn.Module | None:
    """The stand-in for a layer some of whose tensors have dimensions without a living position.

    Args:
        layer: already cut, with one placeholder channel in dead dimensions.
        dead: local tensor name -> those dimensions.
    """
    if _is_plain(layer, _NORMS) or (not layer._modules and norm_kind(layer) is not None):
        return Passing() if 0 in dead.get("weight", ()) else None
    if not _is_plain(layer, _PLAIN) or "weight" not in dead or "bias" not in layer._parameters:
        return None  # a bias that is no parameter of its own is computed in the forward
    assert isinstance(layer, (_ConvNd, nn.Linear))
    transposed = isinstance(layer, _ConvTransposeNd)
    inner, outer = (0, 1) if transposed else (1, 0)
    shape = own_shapes(layer)["weight"]
    depthwise = shape[1] == 1 and isinstance(layer, _ConvNd) and layer.groups == layer.in_channels
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if outer in dead["weight"] or (depthwise and 0 in dead["weight"]):
        return Constant(layer, channels, None)
    if inner in dead["weight"]:
        return Constant(layer, channels, layer.bias)
    return None
