"""Size attributes of torch's layers, computed from the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Shapes = Mapping[str, tuple[int, ...]]
Layers = list[tuple[str, nn.Module]]


def sizes(layer: nn.Module, shapes: Shapes) -> dict[str, Any]:
    """Attributes of `layer` once its tensors have these shapes (local name -> shape).

    A depthwise convolution keeps its outputs per input, every other grouped convolution its number
    of groups, a GroupNorm the width of its groups.
    """
    if isinstance(layer, _NormBase) and shapes:
        return {"num_features": next(s[0] for s in shapes.values() if s)}
    if "weight" not in shapes:
        return {}
    if isinstance(layer, _ConvNd):
        return _conv_sizes(layer, shapes["weight"])
    if isinstance(layer, nn.Linear):
        return {"out_features": shapes["weight"][0], "in_features": shapes["weight"][1]}
    if isinstance(layer, nn.Embedding):
        return {"num_embeddings": shapes["weight"][0], "embedding_dim": shapes["weight"][1]}
    if isinstance(layer, nn.PReLU):
        return {"num_parameters": shapes["weight"][0]}
    if isinstance(layer, nn.RMSNorm):
        return {"normalized_shape": shapes["weight"]}
    if isinstance(layer, nn.GroupNorm):
        channels = shapes["weight"][0]
        width = layer.num_channels // layer.num_groups
        return {"num_channels": channels, "num_groups": channels // width}
    return {}


def _conv_sizes(layer: _ConvNd, weight: tuple[int, ...]) -> dict[str, Any]:
    if layer.groups > 1 and layer.groups == layer.in_channels:
        per_input = layer.out_channels // layer.groups
        inputs = weight[0] if layer.transposed else weight[0] // per_input
        return {"in_channels": inputs, "out_channels": inputs * per_input, "groups": inputs}
    inner, outer = (0, 1) if layer.transposed else (1, 0)
    scale = (1, layer.groups) if layer.transposed else (layer.groups, 1)
    return {"in_channels": weight[inner] * scale[0], "out_channels": weight[outer] * scale[1]}


def number(layer: nn.Module, name: str) -> int | None:
    """The integer attribute `name`, or one entry of it where the name is like "splits[1]"; None
    where it is nothing of the kind."""
    key, _, place = name.partition("[")
    value = getattr(layer, key, None)
    if place and isinstance(value, (list, tuple)):
        i = int(place[:-1])
        value = value[i] if i < len(value) else None
    return value if type(value) is int else None


def set_size(layer: nn.Module, name: str, size: int) -> None:
    """Set the attribute `name`, or one entry of it where the name is like "splits[1]"."""
    key, _, place = name.partition("[")
    if not place:
        setattr(layer, name, size)
        return
    before = getattr(layer, key)
    entries = list(before)
    entries[int(place[:-1])] = size
    setattr(layer, key, type(before)(entries))


def drop_entries(modules: nn.Module, keep: Tensor) -> None:
    """Entries of a `nn.ModuleList` that are not kept go; the others move up."""
    entries = list(modules._modules.values())
    modules._modules.clear()
    for new, old in enumerate(keep.nonzero()[:, 0].tolist()):
        modules._modules[str(new)] = entries[old]


def layers_of(model: nn.Module, path: str = "") -> Layers:
    """All modules, parents first; a shared one appears under each of its names.

    The same modules and order as `named_modules(remove_duplicate=False)`, about ten times faster.
    """
    found = [(path, model)]
    for key, child in model._modules.items():
        if child is not None:
            found += layers_of(child, f"{path}.{key}" if path else key)
    return found


def tensors_of(model: nn.Module) -> dict[str, Any]:
    """Parameters and buffers by name; a shared one appears under each of its names."""
    return tensors_in(layers_of(model))


def tensors_in(layers: Layers) -> dict[str, Any]:
    """The same for layers known by name."""
    return _stored(layers, "_parameters") | _stored(layers, "_buffers")


def _stored(layers: Layers, store: str) -> dict[str, Any]:
    return {
        f"{path}.{key}" if path else key: x
        for path, layer in layers
        for key, x in getattr(layer, store).items()
        if x is not None
    }


def own_shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that `layer` itself holds."""
    own = {**layer._parameters, **layer._buffers}
    return {name: tuple(x.shape) for name, x in own.items() if x is not None}
