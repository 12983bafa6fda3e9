"""Pruning criteria from data, gradients and geometry, as pure functions.

A higher score means that the unit is kept longer. Criteria that need gradients work on a copy, so
weights, gradients and running statistics of the given model do not change. A weight that the loss
does not depend on scores 0. Weights are named as in `Units.weights`, channels by group.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.selection.experts import expert_rows, expert_tensors
from pipeline.selection.masks import Masks, count_of, drop_smallest
from pipeline.units.groups import ChannelGroup, Slice
from pipeline.units.rows import zig_norms

Batch = tuple[Tensor, Tensor]
Allocation = Literal["global", "uniform", "erk"]
Loss = Callable[[nn.Module, Batch], Tensor]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def classification_loss(temperature: float = 1.0) -> Loss:
    """Mean cross-entropy of the logits divided by `temperature`."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, labels = batch
        return cross_entropy(model(inputs) / temperature, labels)

    return loss


def snip(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], loss: Loss
) -> dict[str, Tensor]:
    """Connection sensitivity |w * dL/dw| (Lee et al., ICLR 2019, arXiv:1810.02340, eq. 6 without
    its common normaliser), L the mean loss of `batches`, BatchNorm on batch statistics."""
    probe = _probe(model).train()
    weights = [probe.get_parameter(name) for name in names]
    total = sum(loss(probe, batch) for batch in batches)
    grads = torch.autograd.grad(_tensor(total) / len(batches), weights, materialize_grads=True)
    pairs = zip(names, weights, grads, strict=True)
    return {name: (w * g).detach().abs() for name, w, g in pairs}


def grasp(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], loss: Loss
) -> dict[str, Tensor]:
    """w * (H g): half of what removing w takes from the squared gradient norm, to first order (Wang
    et al., ICLR 2020, arXiv:2002.07376, eq. 8, with the opposite sign, so that higher is kept).

    g and H are gradient and Hessian of the mean loss of `batches` in the named weights. Scores are
    signed; only their order matters.
    """
    probe = _probe(model).train()
    weights = [probe.get_parameter(name) for name in names]
    mean = _tensor(sum(loss(probe, batch) for batch in batches)) / len(batches)
    grads = torch.autograd.grad(mean, weights, create_graph=True, materialize_grads=True)
    flow = _tensor(sum((g * g.detach()).sum() for g in grads))
    curved = torch.autograd.grad(flow, weights, materialize_grads=True)
    return {n: (w * h).detach() for n, w, h in zip(names, weights, curved, strict=True)}


def synflow(model: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, Tensor]:
    """Synaptic flow w * dR/dw, R the summed output of the network of absolute weights for an input
    of ones (Tanaka et al., NeurIPS 2020, arXiv:2006.05467, eq. 4).

    BatchNorm runs with neutral statistics, so only its scale and shift act. Computed in double
    precision, because R grows with the product of the layers.

    Args:
        example: one input batch; only its shape is read.
    """
    probe = _probe(model).double().eval()
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.abs_()
        for module in probe.modules():
            if isinstance(module, BATCH_NORMS):
                module.reset_running_stats()
    weights = [probe.get_parameter(name) for name in names]
    ones = torch.ones_like(example[:1], dtype=torch.float64)
    grads = torch.autograd.grad(probe(ones).sum(), weights, materialize_grads=True)
    return {n: (w * g).detach() for n, w, g in zip(names, weights, grads, strict=True)}


def taylor(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], loss: Loss
) -> dict[str, Tensor]:
    """(w * dL/dw)^2, averaged over batches (Molchanov et al., CVPR 2019, arXiv:1906.10771, eq. 8).
    BatchNorm uses its running statistics."""
    probe = _probe(model).eval()
    scores = {name: torch.zeros_like(probe.get_parameter(name)) for name in names}
    for products in _first_order(probe, names, batches, loss):
        for name in names:
            scores[name] += products[name].square() / len(batches)
    return scores


def taylor_groups(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Batch], loss: Loss
) -> dict[str, Tensor]:
    """Square of the sum of w * dL/dw per channel, averaged over batches (Molchanov et al., eq. 9).
    The sum runs over scales and shifts of the channel's norms (the paper's gate behind BatchNorm),
    or over its producing weights if it has no norm; of an expert over all of its weights."""
    probe = _probe(model).eval()
    known = dict(probe.named_parameters())
    gates = {g.name: _gates(g, known) for g in groups if g.kind == "channel"}
    experts = [g for g in groups if g.kind == "expert"]
    used = {s.tensor for pieces in gates.values() for s in pieces}
    names = sorted(used.union(*(expert_tensors(g, known) for g in experts)))
    scores = {g.name: next(iter(known.values())).new_zeros(g.size) for g in groups}
    for products in _first_order(probe, names, batches, loss):
        for name, pieces in gates.items():
            change = sum(channel_rows(products[s.tensor], s).sum(1) for s in pieces)
            scores[name] += _tensor(change).square() / len(batches)
        for group in experts:
            change = sum(rows.sum(1) for rows in expert_rows(group, products))
            scores[group.name] += _tensor(change).square() / len(batches)
    return scores


def _gates(group: ChannelGroup, known: Mapping[str, Tensor]) -> list[Slice]:
    zig = [s for s in group.zig if s.tensor in known]
    return [s for s in zig if s.role == "norm"] or zig


def _first_order(
    probe: nn.Module, names: Sequence[str], batches: Sequence[Batch], loss: Loss
) -> Iterator[dict[str, Tensor]]:
    weights = [probe.get_parameter(name) for name in names]
    for batch in batches:
        grads = torch.autograd.grad(loss(probe, batch), weights, materialize_grads=True)
        yield {n: (w * g).detach() for n, w, g in zip(names, weights, grads, strict=True)}


@torch.no_grad()
def fpgm(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Sum of the Euclidean distances between a channel's filters and those of the other channels of
    its group: the filter nearest to the geometric median is the most replaceable (He et al.,
    "Filter Pruning via Geometric Median", CVPR 2019, arXiv:1811.00250, eq. 4). None of branches."""
    filters = {g.name: _filters(model, g) for g in groups if g.kind != "branch"}
    exact = "donot_use_mm_for_euclid_dist"
    return {n: torch.cdist(x, x, compute_mode=exact).sum(1) for n, x in filters.items()}


def _filters(model: nn.Module, group: ChannelGroup) -> Tensor:
    """The producing weights of a group without biases, one row per channel; of experts all."""
    known = dict(model.named_parameters(remove_duplicate=False))
    if group.kind == "expert":
        return torch.cat(list(expert_rows(group, known)), dim=1)
    rows = [
        channel_rows(known[s.tensor].detach(), s)
        for s in group.slices
        if s.role == "producer" and s.tensor in known and known[s.tensor].ndim > 1
    ]
    return torch.cat(rows, dim=1)


def channel_rows(tensor: Tensor, piece: Slice) -> Tensor:
    """The entries of `tensor` that belong to each channel, shape (size, entries)."""
    index = piece.index.to(tensor.device)
    return tensor.movedim(piece.dim, 0)[index].reshape(index.shape[0], -1)


def scale_slices(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, tuple[Slice, ...]]:
    """The BatchNorm scales of every group that has one.

    Raises:
        ValueError: no group has one.
    """
    found = _scale_slices(model, groups)
    if not found:
        raise ValueError(
            "no prunable channel group passes a BatchNorm with a scale, which this method needs: "
            "choose a network with BatchNorm (vgg16_bn instead of vgg16) or another method"
        )
    return found


def _scale_slices(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, tuple[Slice, ...]]:
    norms = (path for path, layer in model.named_modules() if isinstance(layer, BATCH_NORMS))
    scales = {f"{path}.weight" if path else "weight" for path in norms}
    scales &= dict(model.named_parameters(remove_duplicate=False)).keys()
    found = {g.name: tuple(s for s in g.slices if s.tensor in scales) for g in groups}
    return {name: slices for name, slices in found.items() if slices}


@torch.no_grad()
def scales_of(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """|gamma| of every BatchNorm that a channel passes, shape (size, norms), of groups with one."""
    known = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: torch.cat([channel_rows(known[s.tensor].detach(), s) for s in slices], dim=1).abs()
        for name, slices in _scale_slices(model, groups).items()
    }


def trained_scales(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[nn.Parameter]:
    """The BatchNorm scales of these groups that training may change, in order of their names.

    Raises:
        ValueError: there is none.
    """
    names = {s.tensor for pieces in scale_slices(model, groups).values() for s in pieces}
    scales = [model.get_parameter(name) for name in sorted(names)]
    found = [scale for scale in scales if scale.requires_grad]
    if not found:
        raise ValueError(
            f"all {len(scales)} BatchNorm scales of prunable channel groups are frozen "
            "(requires_grad is False), and this method learns them: unfreeze some"
        )
    return found


@torch.no_grad()
def scale_saliency(
    model: nn.Module, groups: Sequence[ChannelGroup], across: str = "mean"
) -> dict[str, Tensor]:
    """|gamma| of every channel (Liu et al., ICCV 2017, arXiv:1708.06519): the "mean" or "max" over
    the BatchNorms that it passes. Groups without BatchNorm are omitted.

    A score is 0 only if the whole channel is 0, so that removing it does not change the output. A
    channel of scale 0 still adds its shift.

    Raises:
        ValueError: no group has a BatchNorm scale.
    """
    scale_slices(model, groups)
    silent = {name: norm == 0 for name, norm in zig_norms(model, groups).items()}
    scores = {}
    for name, gammas in scales_of(model, groups).items():
        score = gammas.mean(1) if across == "mean" else gammas.amax(1)
        score = score.clamp(min=torch.finfo(score.dtype).tiny)
        scores[name] = score.masked_fill(silent[name], 0.0)
    return scores


@torch.no_grad()
def add_l1_subgradient(scales: Sequence[nn.Parameter], penalty: float) -> None:
    """Add the sub-gradient of `penalty * sum |gamma|`, 0 at 0, to the gradients."""
    for scale in scales:
        if scale.grad is not None:
            scale.grad.add_(scale.sign(), alpha=penalty)


def uniform(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """The same density for every layer."""
    return dict.fromkeys(shapes, density)


def erdos_renyi(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Erdos-Renyi-kernel densities (Evci et al., ICML 2020, arXiv:1911.11134, section 3): each
    proportional to the sum of the layer's dimensions divided by their product, at most 1, and
    `density` overall."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        sparse = [name for name in shapes if name not in dense]
        room = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = room / sum(raw[n] * sizes[n] for n in sparse) if sparse else 0.0
        full = {name for name in sparse if scale * raw[name] > 1.0}
        if not full:
            return {n: 1.0 if n in dense else scale * raw[n] for n in shapes}
        dense |= full


def keep_density(
    scores: Mapping[str, Tensor], keep: Masks, density: float, allocation: Allocation
) -> dict[str, Tensor]:
    """Keep the largest scores among those alive until `density` of all entries is left."""
    if allocation == "global":
        kept = sum(int(keep[name].sum()) for name in scores)
        goal = count_of(density, sum(score.numel() for score in scores.values()))
        return drop_smallest(scores, keep, max(kept - goal, 0))
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    densities = (erdos_renyi if allocation == "erk" else uniform)(shapes, density)
    layers: dict[str, Tensor] = {}
    for name, score in scores.items():
        spare = int(keep[name].sum()) - count_of(densities[name], score.numel())
        layers |= drop_smallest({name: score}, keep, max(spare, 0))
    return layers


def _probe(model: nn.Module) -> nn.Module:
    """A copy whose weights all take gradients."""
    return copy.deepcopy(model).requires_grad_(True)


def _tensor(value: Tensor | int) -> Tensor:
    assert isinstance(value, Tensor), "no batches"
    return value
