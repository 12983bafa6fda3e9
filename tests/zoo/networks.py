"""The list: one builder and one example per network. Weights are random, sizes small."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.names import (
    BOTH,
    DETECTION,
    ENCODERS,
    FRAMES,
    IMAGES,
    OWN,
    SIDES,
    SIZES,
    TEXT,
    TIMM,
    TIMM_SIDES,
    TORCHVISION,
    VIDEO,
)
from tests.zoo.others import OTHERS


@dataclass(frozen=True)
class Network:
    """`library/name`, how it is built, and what its forward gets."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]

    @property
    def id(self) -> str:
        return f"{self.library}/{self.name}"


def _vision(name: str) -> Network:
    return Network(
        "torchvision", name, partial(_from_torchvision, name), partial(_for_vision, name)
    )


def _from_torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    more: dict[str, Any] = {}
    if any(word in name for word in ("googlenet", "inception_v3")):
        more = {"init_weights": False}
        if name == "googlenet":
            more["aux_logits"] = False  # as torchvision loads its trained weights
    elif any(word in name for word in (*DETECTION, "fcn_", "deeplab", "lraspp")):
        more = {"weights_backbone": None}
        if "rcnn" in name:
            more["box_score_thresh"] = 0.0  # or random weights find nothing to compare
        elif any(word in name for word in DETECTION):
            more["score_thresh"] = 0.0
    model: nn.Module = get_model(name, weights=None, **more)
    return model


def _for_vision(name: str) -> Any:
    side = SIDES.get(name, 64)
    if any(word in name for word in VIDEO):
        return _noise(1, 3, FRAMES.get(name, 4), side, side)
    if name.startswith("raft"):
        return _noise(1, 3, side, side), _noise(1, 3, side, side).flip(3)
    if any(word in name for word in DETECTION):
        return ([_noise(3, 96, 96)],)
    return _noise(1, 3, side, side)


def _noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _from_timm(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _for_timm(name: str) -> Tensor:
    import timm

    side = TIMM_SIDES.get(name) or timm.get_pretrained_cfg(name).input_size[-1]
    return _noise(1, 3, side, side)


def _from_transformers(kind: str) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(kind)
    known = set(config.to_dict())
    own = {**{k: v for k, v in SIZES.items() if k in known}, **OWN.get(kind, {})}
    config = transformers.AutoConfig.for_model(kind, **own)
    if kind == "deit":  # one config, two classes: the one without a teacher
        config.architectures = ["DeiTForImageClassification"]
    auto = transformers.AutoModelForCausalLM
    if kind in IMAGES:
        auto = transformers.AutoModelForImageClassification
    elif kind in ENCODERS:
        auto = transformers.AutoModelForSequenceClassification
    elif config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    model: nn.Module = auto.from_config(config)
    model.set_experts_implementation("eager")  # the fused product of experts knows no float64
    return model


def _for_transformers(kind: str) -> dict[str, Any]:
    if kind in IMAGES:
        return {"pixel_values": _noise(1, 3, 32, 32)}
    words = torch.arange(12)[None] + 3
    both = {"decoder_input_ids": words} if any(word in kind for word in BOTH) else {}
    return (
        {"input_ids": words, "use_cache": False, **both}
        if kind not in ENCODERS
        else {"input_ids": words}
    )


def networks() -> Iterator[Network]:
    """All whose library is installed."""
    yield from map(_vision, TORCHVISION)
    if importlib.util.find_spec("timm") is not None:
        for name in TIMM:
            yield Network("timm", name, partial(_from_timm, name), partial(_for_timm, name))
    for kind in (*TEXT, *IMAGES):
        build, example = partial(_from_transformers, kind), partial(_for_transformers, kind)
        yield Network("transformers", kind, build, example)
    for kind, (build, example) in OTHERS.items():
        yield Network("transformers", kind, build, example)
