"""Save pruned encoders in the layout of `transformers`: config.json and model.safetensors.

The "espalier" entry of the config describes how the network differs from its architecture: the size
of every linear layer and, where queries and keys may be narrower than values, the number of query
features per head. `load_slim` rebuilds the network from it; other tools can read the other entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models._blocks.attention import query_key_sizes, with_open_queries
from models._blocks.encoder import EncoderQA
from pipeline.files import DamagedFileError, read_json, replacing, write_json
from pipeline.registry import Delivery
from pipeline.units.constant import Constant

CONFIG, WEIGHTS, OURS = "config.json", "model.safetensors", "espalier"


def save_slim(model: nn.Module, folder: Path) -> None:
    """Write an `EncoderQA`, pruned or not, into `folder`."""
    from safetensors.torch import save_file

    assert isinstance(model, EncoderQA)
    config = model.encoder.config.to_dict()
    pooler = getattr(model.encoder, "pooler", None) is not None
    queries = query_key_sizes(model)
    with torch.device("meta"):
        dense = _build(config, pooler, bool(queries))
    stem = type(model.encoder).__name__.removesuffix("Model")
    config["architectures"] = [f"{stem}ForQuestionAnswering"]
    config[OURS] = {
        "pooler": pooler,
        "layers": _sizes(model),
        "attributes": _attributes(model, dense),
        "constants": {n: m.channels for n, m in model.named_modules() if isinstance(m, Constant)},
    }
    if queries:
        config[OURS]["query_key"] = queries
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)


def _sizes(model: nn.Module) -> dict[str, list[int]]:
    """Outputs and inputs of every linear layer, by name."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {name: list(layer.weight.shape) for name, layer in layers.items()}


def _build(config: Mapping[str, Any], pooler: bool, open_queries: bool) -> EncoderQA:
    from transformers import AutoConfig, AutoModel

    more = {} if pooler else {"add_pooling_layer": False}
    try:
        encoder = AutoModel.from_config(AutoConfig.for_model(**config), **more)
    except TypeError:  # an architecture without a pooler option
        encoder = AutoModel.from_config(AutoConfig.for_model(**config))
    return EncoderQA(with_open_queries(encoder) if open_queries else encoder)


def _numbers(module: nn.Module) -> dict[str, int | float]:
    if isinstance(module, nn.Linear):
        return {}
    return {k: v for k, v in vars(module).items() if type(v) in (int, float)}


def _attributes(model: nn.Module, dense: nn.Module) -> dict[str, dict[str, int | float]]:
    """Per module, the numeric attributes that pruning changed (number and size of heads)."""
    found = {}
    for name, before in dense.named_modules():
        after = model.get_submodule(name)
        if type(after) is not type(before):
            continue
        changed = {k: v for k, v in _numbers(after).items() if _numbers(before).get(k) != v}
        if changed:
            found[name] = changed
    return found


def load_slim(folder: Path) -> EncoderQA:
    """Load the network that `save_slim` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        DamagedFileError: not written by `save_slim`, or the two files do not match.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_json(folder / CONFIG)
    try:
        ours = config.pop(OURS)
        model = _build(config, ours["pooler"], "query_key" in ours)
        _reshape(model, ours)
        if query_key_sizes(model) != ours.get("query_key", {}):
            raise KeyError("query_key: not the sizes of the layers")
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise DamagedFileError(f"{folder}: not a folder of a slim encoder ({error})") from error
    return model.eval()


def _reshape(model: EncoderQA, ours: Mapping[str, Any]) -> None:
    for name, numbers in ours["attributes"].items():
        for key, value in numbers.items():
            setattr(model.get_submodule(name), key, value)
    for name, (outputs, inputs) in ours["layers"].items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.out_features, layer.in_features = outputs, inputs
        layer.weight = nn.Parameter(torch.empty(outputs, inputs))
        if layer.bias is not None:
            layer.bias = nn.Parameter(torch.empty(outputs))
    for name, channels in ours["constants"].items():
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        ends = layer.out_features == channels  # all inputs are pruned: only the bias remains
        setattr(model.get_submodule(parent), child, Constant(layer, channels, layer.bias))
        if not ends:
            model.get_submodule(name).bias = None


DELIVERY = Delivery(save_slim, load_slim)
