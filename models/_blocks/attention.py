"""BERT's self-attention with queries and keys that may be narrower than values.

`transformers` uses one width for all three, so it cannot run a network whose queries and keys have
lost features, as in "Only Train Once". The class here has the same layers under the same keys and
takes the widths from the layers' outputs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline.units.heads import as_wide_as_values

KINDS = tuple(
    f"{name}SelfAttention" for name in ("Bert", "Camembert", "Electra", "Roberta", "XLMRoberta")
)
"""Self-attention classes of `transformers` that compute the same function."""


class OpenSelfAttention(nn.Module):
    """One of `KINDS` with queries and keys of any width; created by `with_open_queries`.

    Attributes:
        num_attention_heads: number of heads that remain in this layer.
        attention_head_size: value features per head.
        scaling: factor of the attention scores, from the query width of the dense network;
            pruning does not change it.
    """

    num_attention_heads: int
    attention_head_size: int
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention by the implementation that the network's config names (sdpa, eager, ...).

        Raises:
            ValueError: there is a cache of keys, as in a decoder.
        """
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.bert.modeling_bert import eager_attention_forward

        if past_key_values is not None:
            raise ValueError("attention: query_key is for encoders: there is no cache of keys")
        made = [layer(hidden_states) for layer in (self.query, self.key, self.value)]
        heads = (self.num_attention_heads, -1)
        query, key, value = (x.unflatten(-1, heads).transpose(1, 2) for x in made)
        if self.config._attn_implementation == "sdpa":
            query, key = as_wide_as_values(query, key, value)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout.p if self.training else 0.0
        rest = {"dropout": dropout, "scaling": self.scaling, **more}
        found, weights = attend(self, query, key, value, attention_mask, **rest)
        return found.flatten(-2).contiguous(), weights

    @property
    def query_key_size(self) -> int:
        """Remaining query features per head; 0 means that all scores are 0."""
        rows = getattr(self.query, "out_features", 0)
        return int(rows) // self.num_attention_heads


def with_open_queries(encoder: nn.Module) -> nn.Module:
    """Turn every self-attention of `encoder` into an `OpenSelfAttention`, in place.

    Parameters, `state_dict` keys and outputs do not change.

    Raises:
        ValueError: it has none of `KINDS`.
    """
    known = (*KINDS, OpenSelfAttention.__name__)
    layers = [m for m in encoder.modules() if type(m).__name__ in known]
    if not layers:
        raise ValueError(
            f"model: attention: query_key is known for {', '.join(KINDS)} of transformers, not for "
            f"{type(encoder).__name__}; take attention: heads or head_dim"
        )
    for layer in layers:
        layer.__class__ = OpenSelfAttention
    return encoder


def query_key_sizes(model: nn.Module) -> dict[str, int]:
    """`query_key_size` of every `OpenSelfAttention`, by module name."""
    return {
        n: m.query_key_size for n, m in model.named_modules() if isinstance(m, OpenSelfAttention)
    }
