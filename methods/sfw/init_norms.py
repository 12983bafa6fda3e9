"""Norms of freshly initialised tensors, which set the scale of their constraints."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

NormSource = Literal["closed_form", "measured", "measured_by_shape"]

DRAWS = 100
"""Fresh initialisations averaged per tensor; Miao et al. 2022, released code."""


def init_norms(model: nn.Module, source: NormSource, draws: int = DRAWS) -> dict[str, float]:
    """Typical Euclidean norm of every parameter right after initialisation, by parameter name.

    closed_form: from the layer type, see `closed_form`; layers without a formula are measured.
    measured: mean of `draws` calls of the layer's `reset_parameters` on a copy.
    measured_by_shape: the same, but all tensors of one shape share the value of the last one, as
        in the authors' released code (so that a BatchNorm scale takes its shift's value).

    A parameter whose layer has no `reset_parameters` is measured as it is. A norm of 0 is replaced
    by 1. Neither the model's weights nor the global random state change.
    """
    if source == "closed_form":
        known = {n: closed_form(owner, key) for n, owner, key in _owned(model)}
        missing = {n for n, norm in known.items() if norm is None}
        measured = _measure(model, missing, draws) if missing else {}
        norms = {n: measured[n] if norm is None else norm for n, norm in known.items()}
    else:
        norms = _measure(model, {n for n, *_ in _owned(model)}, draws)
    norms = {n: norm if norm > 0.0 else 1.0 for n, norm in norms.items()}
    if source == "measured_by_shape":
        norms = _shared_by_shape(model, norms)
    return norms


def closed_form(layer: nn.Module, key: str) -> float | None:
    """sqrt(E ||tensor||^2) of torch's default initialisation, None if there is no formula.

    Convolution and linear layers draw weight and bias from U(-b, b), b = 1/sqrt(fan_in): variance
    1/(3 fan_in). Normalisation scales are ones and shifts zeros; embeddings are N(0, 1).
    """
    tensor = getattr(layer, key)
    n = tensor.numel()
    if isinstance(layer, (_ConvNd, nn.Linear)) and key in ("weight", "bias"):
        fan_in = layer.weight[0].numel()
        return math.sqrt(n / (3.0 * fan_in))
    if isinstance(layer, (_NormBase, nn.LayerNorm, nn.GroupNorm)) and key in ("weight", "bias"):
        return math.sqrt(n) if key == "weight" else 0.0
    if isinstance(layer, nn.Embedding):
        return math.sqrt(n - (0 if layer.padding_idx is None else layer.embedding_dim))
    return None


def _owned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, layer, attribute) of every parameter; a shared parameter appears once."""
    layers = dict(model.named_modules())
    for name, _ in model.named_parameters():
        prefix, _, key = name.rpartition(".")
        yield name, layers[prefix], key


@torch.no_grad()
def _measure(model: nn.Module, names: set[str], draws: int) -> dict[str, float]:
    """Mean norm over `draws` re-initialisations of a copy, from a fixed seed."""
    norms: dict[str, float] = {}
    twin = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, layer, key in _owned(twin):
            if name not in names:
                continue
            reset = getattr(layer, "reset_parameters", None)
            sizes = []
            for _ in range(draws if reset else 1):
                if reset:
                    reset()
                sizes.append(getattr(layer, key).double().norm().item())
            norms[name] = sum(sizes) / len(sizes)
    return norms


def _shared_by_shape(model: nn.Module, norms: dict[str, float]) -> dict[str, float]:
    """Every tensor gets the norm of the last tensor of its shape."""
    last = {tuple(p.shape): norms[n] for n, p in model.named_parameters()}
    return {n: last[tuple(p.shape)] for n, p in model.named_parameters()}
