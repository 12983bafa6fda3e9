"""Encoders with a span head for question answering (Devlin et al., BERT, NAACL 2019).

- `encoder_qa`: BERT of any size, bert-base by default.
- `auto_qa`: any encoder of `transformers`, from the config.json of a folder or a hub name.

`state_dict` keys are those of the `...ForQuestionAnswering` classes of `transformers`. Pretrained
weights are loaded through the training's `weights:` block.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor, nn

from models._blocks.attention import with_open_queries
from models._blocks.encoder import EncoderQA
from models._slim import DELIVERY
from pipeline.data.info import DatasetInfo
from pipeline.registry import register_model
from pipeline.units.groups import Units
from pipeline.units.trace import trace_units
from pipeline.units.trace.tracer import Attention

FAMILY = "bert"
NEVER_PRUNE = ("qa_outputs",)


def example(info: DatasetInfo, batch: int) -> Tensor:
    """`batch` windows without padding, filled with the first few tokens of the vocabulary."""
    return _windows(info.input_shape, batch)


def _windows(shape: tuple[int, ...], batch: int) -> Tensor:
    inputs = torch.zeros(batch, *shape, dtype=torch.int64)
    inputs[:, 0] = torch.arange(shape[-1]) % 4
    inputs[:, 1] = 1
    return inputs


def traced(model: nn.Module) -> Units:
    """Inner features of every layer, and the units of attention that the model selects."""
    assert isinstance(model, EncoderQA)
    inputs = _windows(model.window, 1).to(next(model.parameters()).device)
    unused = tuple(n for n, _ in model.named_modules() if n == f"{model.prefix}.pooler")
    return trace_units(model, inputs, NEVER_PRUNE + unused, model.attention)


def finished(
    encoder: nn.Module, info: DatasetInfo, freeze_embeddings: bool, attention: Attention
) -> EncoderQA:
    """The encoder with its head.

    Raises:
        ValueError: the data's windows are longer than the encoder's positions; `attention` is
            unknown or not available for this encoder.
    """
    if attention not in (known := get_args(Attention)):
        raise ValueError(f"model: attention: {attention!r} (known: {', '.join(known)})")
    positions, length = encoder.config.max_position_embeddings, info.input_shape[-1]
    if length > positions:
        raise ValueError(
            f"model: windows of {length} tokens (data.squad.max_length), {positions} positions"
        )
    if attention == "query_key":
        with_open_queries(encoder)
    encoder.embeddings.requires_grad_(not freeze_embeddings)
    network = EncoderQA(encoder)
    network.window, network.attention = info.input_shape, attention
    return network


_SPEC: dict[str, Any] = {
    "task": "question_answering",
    "never_prune": NEVER_PRUNE,
    "units": traced,
    "example": example,
    "uncounted": ("embeddings",),
    "delivery": DELIVERY,
}


@register_model(FAMILY, "encoder_qa", **_SPEC)
def encoder_qa(  # noqa: PLR0913 (what params.yaml may set)
    info: DatasetInfo,
    *,
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    intermediate: int = 3072,
    vocab: int = 30522,
    positions: int = 512,
    dropout: float = 0.1,
    pooler: bool = False,
    freeze_embeddings: bool = False,
    attention: Attention = "heads",
) -> nn.Module:
    """BERT with a span head.

    Args:
        pooler: include the pooler, which this task does not use but which counts as parameters, as
            in the OTO authors' BERT.
        attention: unit of pruning: a head ("heads", OTOv2); one feature of the queries and keys of
            all heads ("query_key", OTO); one feature of queries, keys and values of all heads
            ("head_dim"); or "none".
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return finished(BertModel(config, add_pooling_layer=pooler), info, freeze_embeddings, attention)


@register_model(FAMILY, "auto_qa", **_SPEC)
def auto_qa(
    info: DatasetInfo,
    *,
    config: str = "bert-base-uncased",
    layers: int | None = None,
    freeze_embeddings: bool = False,
    attention: Attention = "heads",
) -> nn.Module:
    """The architecture that `config` (a folder or a hub name) describes.

    Args:
        layers: number of its first layers to use; None = all.
        attention: as in `encoder_qa`.

    Raises:
        ValueError: `config` cannot be read, or its encoder is not supported.
    """
    from transformers import AutoConfig, AutoModel

    try:
        found = AutoConfig.from_pretrained(config)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.config: {config!r} cannot be read: {error}") from error
    if layers is not None:
        found.num_hidden_layers = min(layers, found.num_hidden_layers)
    more = {"add_pooling_layer": False} if found.model_type in ("bert", "roberta") else {}
    encoder = AutoModel.from_config(found, **more)
    return finished(encoder, info, freeze_embeddings, attention)
