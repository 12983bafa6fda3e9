"""BERT's self-attention with queries and keys that may be narrower than values.

`transformers` has one number for the width of all three, so a network whose query and key lost
features, as in "Only Train Once", could not run. The same layers under the same keys, with widths
taken from what they make, can.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline.units.heads import as_wide_as_values

KINDS = tuple(
    f"{name}SelfAttention" for name in ("Bert", "Camembert", "Electra", "Roberta", "XLMRoberta")
)
"""Classes of `transformers` that all compute the same."""


class OpenSelfAttention(nn.Module):
    """One of `KINDS` for queries and keys of any width; made by `with_open_queries`.

    Attributes:
        num_attention_heads: what stays, here.
        attention_head_size: features of a head's values.
        scaling: of the scores: from the width of the dense network's queries, whatever goes.
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
        """Through the implementation that the network's config names (sdpa, eager, ...).

        Raises:
            ValueError: keys are to be kept for later, as in a decoder.
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
        """Features of a head's queries that are left; 0 = the scores are 0."""
        rows = getattr(self.query, "out_features", 0)
        return int(rows) // self.num_attention_heads


def with_open_queries(encoder: nn.Module) -> nn.Module:
    """`encoder`, every self-attention in it an `OpenSelfAttention`.

    In place; parameters, keys of the `state_dict` and outputs stay.

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
    """Self-attention -> `query_key_size`; empty where attention was never opened."""
    return {
        n: m.query_key_size for n, m in model.named_modules() if isinstance(m, OpenSelfAttention)
    }
