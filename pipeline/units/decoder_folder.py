"""A pruned decoder as a folder that `from_pretrained` loads: the config says the new sizes.

For architectures of `transformers` with Llama's layers (Llama, Mistral, Qwen2, Qwen3, SmolLM3,
Gemma and others): `embed_tokens`, `layers` of `self_attn` and `mlp`, RMS norms.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.units.rms_norms import norm_kind

TOKENS = 8
TOLERANCE = 1e-4
"""Between the network and the one that its folder describes, relative: float32 rounding."""


def decoder_sizes(model: nn.Module) -> dict[str, int | float]:
    """The entries of the config that pruning may have changed, read from the layers.

    Raises:
        ValueError: the layers are not Llama's, or differ in a size for which the config has one
            number.
    """
    try:
        inner = model.get_submodule(model.base_model_prefix)
        per_layer = [_layer_sizes(layer) for layer in inner.layers]
        eps = {_eps(layer) for layer in _norms(inner)}
        found = {"hidden_size": inner.embed_tokens.weight.shape[1]}
    except AttributeError as error:
        raise ValueError(
            f"{type(model).__name__} is no decoder of Llama's kind, or lost a whole layer "
            f"({error}): write it with save_pruned"
        ) from error
    for key in per_layer[0]:
        found[key] = _one(key, (sizes[key] for sizes in per_layer))
    return {**found, "rms_norm_eps": _one("rms_norm_eps", eps)}


def save_decoder(model: nn.Module, folder: Path | str) -> None:
    """Write config.json and the weights of a pruned decoder, in evaluation mode, into a new folder.

    The network that the config describes is built and compared with `model` first.

    Raises:
        FileExistsError: the folder is there already.
        ValueError: no config of this architecture describes the network.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: give the decoder a folder of its own")
    config = copy.deepcopy(model.config)
    sizes = decoder_sizes(model)
    grown = 1.0
    if _norms_of_heads(model):  # they read the same eps and lost nothing
        grown = sizes.pop("rms_norm_eps") / config.rms_norm_eps
    for key, value in sizes.items():
        setattr(config, key, value)
    weight = next(model.parameters())
    rebuilt = type(model)(config).to(weight.device, weight.dtype).eval()
    try:
        rebuilt.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"the sizes of {type(model).__name__} do not fit its config: {error}"
        ) from (error)
    _shrink_stream(rebuilt, grown, _embedding_scale(model) / _embedding_scale(rebuilt))
    _check_equal(model, rebuilt)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        written = Path(temporary) / folder.name
        rebuilt.save_pretrained(written)
        written.rename(folder)


def _norms_of_heads(model: nn.Module) -> bool:
    return any(
        name.endswith(("self_attn.q_norm", "self_attn.k_norm")) for name, _ in model.named_modules()
    )


@torch.no_grad()
def _shrink_stream(model: nn.Module, grown: float, scale: float) -> None:
    """Divide the residual stream by sqrt(grown), where its norms have eps and not eps * grown:
    x / sqrt(mean(x^2) + eps * grown) stays what it was.

    `scale`: of the embedding (Gemma: sqrt(hidden_size)) before pruning over that of `model`.
    """
    inner, by = model.get_submodule(model.base_model_prefix), 1 / math.sqrt(grown)
    if not math.isclose(scale * by, 1.0):
        inner.embed_tokens.weight.mul_(scale * by)
        if model.lm_head.weight is inner.embed_tokens.weight:
            _scale_norm(inner.norm, 1 / (scale * by))
    if grown == 1.0:
        return
    for layer in inner.layers:
        for parameter in (*layer.self_attn.o_proj.parameters(), *layer.mlp.down_proj.parameters()):
            parameter.mul_(by)
        if hasattr(layer, "post_feedforward_layernorm"):  # Gemma 2 and 3: norms of both branches
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                _scale_norm(norm, by)


def _scale_norm(norm: nn.Module, by: float) -> None:
    """Multiply what an RMS norm returns."""
    kind = norm_kind(norm)
    offset = 0.0 if kind is None else kind.offset
    norm.weight.add_(offset).mul_(by).sub_(offset)


def _embedding_scale(model: nn.Module) -> float:
    inner = model.get_submodule(model.base_model_prefix)
    return float(getattr(inner.embed_tokens, "scalar_embed_scale", 1.0))


def _layer_sizes(layer: nn.Module) -> dict[str, int]:
    attention, width = layer.self_attn, layer.self_attn.head_dim
    return {
        "num_attention_heads": attention.q_proj.weight.shape[0] // width,
        "num_key_value_heads": attention.k_proj.weight.shape[0] // width,
        "head_dim": width,
        "intermediate_size": layer.mlp.down_proj.weight.shape[1],
    }


def _norms(inner: nn.Module) -> list[nn.Module]:
    """Norms of the residual stream, not those of queries and keys."""
    own = [m for layer in inner.layers for n, m in layer.named_children() if "norm" in n]
    return [*own, inner.norm]


def _eps(norm: nn.Module) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)


def _one(key: str, values: Iterable[Any]) -> Any:
    found = sorted(set(values))
    if len(found) > 1:
        raise ValueError(
            f"{key}: the layers differ ({', '.join(map(str, found))}) and the config has one "
            "number: remove as many in every layer, or write it with save_pruned"
        )
    return found[0]


@torch.no_grad()
def _check_equal(model: nn.Module, rebuilt: nn.Module) -> None:
    words = torch.arange(TOKENS, device=next(model.parameters()).device)[None] % _words(model)
    a, b = (m.eval()(input_ids=words, use_cache=False).logits for m in (model, rebuilt))
    difference = float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
    if difference > max(TOLERANCE, 8 * torch.finfo(a.dtype).eps):
        raise ValueError(
            f"{type(model).__name__} computes something else from its config's sizes (outputs "
            f"differ by {difference:.1e}, relative): write it with save_pruned"
        )


def _words(model: nn.Module) -> int:
    config: Mapping[str, Any] = model.config.to_dict()
    return int(config["vocab_size"])
