"""The table: ATen operator -> rule. Elementwise operators need no entry."""

from __future__ import annotations

from pipeline.units.trace import joining, layers, layout, summaries
from pipeline.units.trace.leftovers import forgetting
from pipeline.units.trace.pointwise import pointwise
from pipeline.units.trace.tracer import Rule

generic: Rule = pointwise


def _families() -> dict[str, Rule]:
    """Operators that come in many names for one rule."""
    same: list[str] = "clone contiguous _to_copy detach alias lift_fresh".split()  # noqa: SIM905
    views: list[str] = "view squeeze unsqueeze".split()  # noqa: SIM905
    image = (
        "max_pool{n}d_with_indices avg_pool{n}d _adaptive_avg_pool{n}d adaptive_max_pool{n}d "
        "reflection_pad{n}d replication_pad{n}d adaptive_avg_pool{n}d"
    )
    resize = "upsample_nearest{n}d _upsample_nearest_exact{n}d"
    table: dict[str, Rule] = dict.fromkeys(same, layout.same_layout)
    table |= dict.fromkeys(views, layout.view)
    for n in (1, 2, 3):
        table |= dict.fromkeys(f"{image} {resize}".format(n=n).split(), summaries.spatial(n))
    smooth = {"upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2}
    smooth |= {"upsample_trilinear3d": 3, "_upsample_bilinear2d_aa": 2}
    table |= {name: summaries.spatial(n) for name, n in smooth.items()}
    table |= dict.fromkeys(("permute", "transpose", "t"), layout.permute)
    sums = "mean sum amax amin prod var std max min linalg_vector_norm"
    table |= dict.fromkeys(sums.split(), summaries.reduce)
    table |= dict.fromkeys(("split", "split_with_sizes"), joining.split)
    made = "ones_like full_like empty_like rand_like randn_like"
    table |= dict.fromkeys(made.split(), layout.filled_like)
    table |= dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), summaries.softmax)
    norms = (
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "cudnn_batch_norm miopen_batch_norm batch_norm"
    )
    table |= dict.fromkeys(norms.split(), layers.batch_norm)
    return table


_TABLE: dict[str, Rule] = _families() | {
    "<constant>": layout.constant,
    "as_strided": layout.as_strided,
    "zeros_like": layout.zeros_like,
    "zero": layout.zeros_like,
    "new_zeros": layout.fixed_zeros,
    "expand": layout.expand,
    "index": layout.index,
    "index_add": layout.index_add,
    "roi_align": layout.roi_align,
    "repeat": layout.repeat,
    "flip": summaries.moved,
    "roll": summaries.moved,
    "slice": joining.slice_,
    "select": joining.select,
    "unbind": joining.unbind,
    "glu": joining.glu,
    "cat": joining.cat,
    "stack": joining.stack,
    "constant_pad_nd": joining.pad,
    "channel_shuffle": layout.channel_shuffle,
    "native_channel_shuffle": layout.channel_shuffle,
    "pixel_shuffle": layout.pixel_shuffle,
    "pixel_unshuffle": layout.pixel_unshuffle,
    "convolution": layers.convolution,
    "addmm": layers.addmm,
    "mm": layers.mm,
    "bmm": layers.mm,
    "baddbmm": layers.baddbmm,
    "linear": layers.linear,
    "embedding": layers.embedding,
    "native_group_norm": layers.group_norm,
    "native_layer_norm": layers.layer_norm,
}


RULES: dict[str, Rule] = {name: forgetting(name, rule) for name, rule in _TABLE.items()}
