"""torch's MultiheadAttention with heads that can go.

Its own forward insists on projections as wide as the model, so a network that lost heads could not
run. The same parameters under the same keys, multiplied in the open, can. Other attention whose
code insists on that width: see `pipeline.units.open_sizes`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from pipeline.units.open_sizes import opened


class OpenAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` for any number and width of heads; one is made by `with_open_heads`.

    Attributes:
        num_heads, head_dim: what is left, `head_dim` of the values; surgery sets them. Queries and
            keys may be narrower.
        scale: of the scores, that of the dense network whatever goes.
    """

    scale: float

    def forward(  # noqa: PLR0913  (torch's signature)
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`; `is_causal` is a hint, the mask decides.

        The average of the weights runs over all heads: ask for none where heads are to go.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        inputs = [self._batch_first(x, batched) for x in (query, key, value)]
        q, k, v = self._projected(*inputs)
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout)
            out = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            q, k = as_wide_as_values(q, k, v)
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys, values: (batch, head, position, feature)."""
        if self.in_proj_weight is not None:
            weights = self._thirds(self.in_proj_weight)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self._thirds(self.in_proj_bias)
        return [
            F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]

    def _thirds(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Rows of queries, keys, values: thirds, unless features of queries and keys went."""
        values = self.num_heads * self.head_dim
        keys = (packed.shape[0] - values) // 2
        return packed.split([keys, keys, values])

    def _mask(
        self, q: Tensor, k: Tensor, attention: Tensor | None, padding: Tensor | None
    ) -> Tensor | None:
        """Both masks as one that is added to the scores of (batch, head, query, key)."""
        masks = []
        if attention is not None:
            if attention.dim() == 3 and attention.shape[0] != q.shape[0] * self.num_heads:
                raise ValueError(
                    f"attn_mask is for {attention.shape[0]} heads of all examples, of which this "
                    f"attention has {q.shape[0] * self.num_heads}: give one for all heads"
                )
            sizes = (q.shape[0], self.num_heads) if attention.dim() == 3 else (1, 1)
            masks.append(_added(attention, q).view(*sizes, q.shape[2], k.shape[2]))
        if padding is not None:
            masks.append(_added(padding, q).view(q.shape[0], 1, 1, k.shape[2]))
        return sum(masks[1:], masks[0]) if masks else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A boolean mask, True where nothing is looked at, as numbers."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def as_wide_as_values(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys that lost features, for torch's fused attention.

    It wants one width; without, a CPU takes three times as long. Zeros change no score. Who follows
    the operators, to trace or count them, sees the attention itself.
    """
    missing = v.shape[-1] - q.shape[-1]
    if missing <= 0 or is_in_torch_dispatch_mode():
        return q, k
    return F.pad(q, (0, missing)), F.pad(k, (0, missing))


def with_open_heads(model: nn.Module) -> nn.Module:
    """`model`, every `nn.MultiheadAttention` in it an `OpenAttention`, every other module whose
    code takes the width of its heads from the input `opened`.

    In place; parameters, keys of the `state_dict` and outputs stay. An attention with a bias or
    zeros added to its keys is left alone. Where the network is built again, call this again.
    """
    for layer in model.modules():
        added = isinstance(layer, nn.MultiheadAttention) and (
            layer.bias_k is not None or layer.add_zero_attn
        )
        if type(layer) is nn.MultiheadAttention and not added:
            layer.__class__ = OpenAttention
            layer.scale = layer.head_dim**-0.5  # type: ignore[assignment]
            layer._qkv_same_embed_dim = False  # so an encoder layer leaves its fused kernel alone
        elif (kind := opened(type(layer))) is not type(layer):  # type: ignore[arg-type]
            layer.__class__ = kind
    return model
