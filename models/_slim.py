"""Pruned encoders as folders that `transformers` users know: config.json and model.safetensors.

What is not as the architecture says stands in the config under "espalier": the sizes of the linear
layers, layer by layer. `load_slim` builds the network from it; other tools read the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models._encoder import EncoderQA
from pipeline.files import DamagedFileError, read_json, replacing, write_json
from pipeline.study.registry import Delivery
from pipeline.units.constant import Constant

CONFIG, WEIGHTS, OURS = "config.json", "model.safetensors", "espalier"
_NUMBERS = ("num_attention_heads", "attention_head_size", "all_head_size", "scaling")


def save_slim(model: nn.Module, folder: Path) -> None:
    """Write an `EncoderQA`, pruned or not, into `folder`."""
    from safetensors.torch import save_file

    assert isinstance(model, EncoderQA)
    config = model.encoder.config.to_dict()
    stem = type(model.encoder).__name__.removesuffix("Model")
    config["architectures"] = [f"{stem}ForQuestionAnswering"]
    config[OURS] = {
        "pooler": getattr(model.encoder, "pooler", None) is not None,
        "layers": _sizes(model),
        "attributes": _attributes(model),
        "constants": {n: m.channels for n, m in model.named_modules() if isinstance(m, Constant)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)


def _sizes(model: nn.Module) -> dict[str, list[int]]:
    """Linear layer -> outputs and inputs."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {name: list(layer.weight.shape) for name, layer in layers.items()}


def _attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Attention module -> its numbers."""
    found = {}
    for name, module in model.named_modules():
        own = {k: vars(module)[k] for k in _NUMBERS if k in vars(module)}
        if own:
            found[name] = own
    return found


def load_slim(folder: Path) -> EncoderQA:
    """The network that `save_slim` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        DamagedFileError: not written by `save_slim`, or the files do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    config = read_json(folder / CONFIG)
    try:
        ours = config.pop(OURS)
        known = AutoConfig.for_model(**config)
        more = {} if ours["pooler"] else {"add_pooling_layer": False}
        model = EncoderQA(AutoModel.from_config(known, **more))
        _reshape(model, ours)
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
        ends = layer.out_features == channels  # its inputs are dead: the bias is left
        setattr(model.get_submodule(parent), child, Constant(layer, channels, layer.bias))
        if not ends:
            model.get_submodule(name).bias = None


DELIVERY = Delivery(save_slim, load_slim)
