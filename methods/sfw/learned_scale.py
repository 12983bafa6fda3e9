"""Learn one scale per parameter tensor to minimise the loss after the first Frank-Wolfe step.

GradInit (Zhu et al., NeurIPS 2021) adapted to one Frank-Wolfe step: Algorithm 3 of Miao et al.,
ICLR 2022; hyper-parameters as in both papers' released code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.linalg import vector_norm
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from methods.sfw.constraints import ConvexSet, Unconstrained
from pipeline.training.method import Batches

ITERATIONS = 390
BATCHES_PER_ITERATION = 3
SCALE_LR = 1e-3
SCALE_CLIP = 1.0
WEIGHT_FLOOR = 0.01

Named = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


def learn_scales(
    model: nn.Module,
    sets: Mapping[str, ConvexSet],
    batches: Batches,
    lr: float,
    iterations: int = ITERATIONS,
) -> dict[str, float]:
    """Multiply every parameter by its learned scale; return the scales.

    Every iteration takes batches B0, B1, B2. One Frank-Wolfe step on B0 and B1 yields the weights
    q(scales). An Adam step then reduces the task loss of q on B0 and B2 with respect to the scales,
    differentiated through the Frank-Wolfe step (second order). Scales start at 1; that of a tensor
    of norm 0 does not change. The scaled weights may be infeasible.

    Args:
        model: on its training device; mode flags and running statistics do not change.
        sets: the feasible set of every parameter, by name.
        batches: restarted when exhausted; the batches of a one-shot iterator are stored for that.
            Two batches whose examples have one shape are concatenated; those of different shapes
            (windows of text) are evaluated separately.
        lr: learning rate of the gradient-rescaled Frank-Wolfe step.
        iterations: number of iterations.
    """
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    device = next(iter(start.values())).device
    dtype = next(iter(start.values())).dtype
    scale = torch.ones(len(start), device=device, dtype=dtype, requires_grad=True)
    floor = torch.tensor([WEIGHT_FLOOR if "weight" in n else 0.0 for n in start]).to(scale)
    adam = torch.optim.Adam([scale], lr=SCALE_LR)
    feed, task = _endless(batches, device), _TaskLoss(model, batches.loss)
    # the fused kernels of attention have no second derivative
    with _batch_statistics(model), sdpa_kernel(SDPBackend.MATH):
        for _ in range(iterations):
            loss = _loss_after_step(task, _scaled(start, scale), sets, feed, lr)
            (gradient,) = torch.autograd.grad(loss / lr, scale)
            scale.grad = gradient.clamp_(-SCALE_CLIP, SCALE_CLIP)
            adam.step()
            with torch.no_grad():
                torch.maximum(scale, floor, out=scale)
    with torch.no_grad():
        final = _scaled(start, scale)
        for name, p in model.named_parameters():
            if name in final:
                p.copy_(final[name])
    return dict(zip(start, scale.tolist(), strict=True))


def _scaled(start: Named, scale: Tensor) -> Named:
    return {n: s * p for (n, p), s in zip(start.items(), scale.unbind(), strict=True)}


class _TaskLoss(nn.Module):
    """The loss of a task as a module, so `functional_call` can replace the network's parameters."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.network, batch)


def _loss_after_step(
    task: _TaskLoss,
    now: Named,
    sets: Mapping[str, ConvexSet],
    feed: Iterator[Batch],
    lr: float,
) -> Tensor:
    first, second = next(feed), next(feed)
    loss = _loss(task, now, first, second)
    gradients = torch.autograd.grad(
        loss, list(now.values()), create_graph=True, materialize_grads=True
    )
    after = {
        name: _step(p, g, sets[name], lr)
        for (name, p), g in zip(now.items(), gradients, strict=True)
    }
    return _loss(task, after, first, next(feed))


def _step(p: Tensor, g: Tensor, feasible: ConvexSet, lr: float) -> Tensor:
    """One Frank-Wolfe step without momentum; differentiable in its size, not in the vertex."""
    if isinstance(feasible, Unconstrained):
        return p - lr * g
    v = feasible.lmo(g.detach())
    distance = vector_norm(p - v).clamp_min(1e-12)
    gamma = (lr * vector_norm(g) / distance).clamp(0.0, 1.0)
    return (1.0 - gamma) * p + gamma * v


def _loss(task: _TaskLoss, params: Named, one: Batch, two: Batch) -> Tensor:
    """Mean loss of two batches together."""
    named = {f"network.{name}": p for name, p in params.items()}
    if one[0].shape[1:] == two[0].shape[1:]:
        joined = torch.cat([one[0], two[0]]), torch.cat([one[1], two[1]])
        whole: Tensor = functional_call(task, named, (joined,))
        return whole
    losses = torch.stack([functional_call(task, named, (batch,)) for batch in (one, two)])
    sizes = losses.new_tensor([len(one[0]), len(two[0])])
    return (losses * sizes).sum() / sizes.sum()


def _endless(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """
    Raises:
        ValueError: there are no batches.
    """
    seen: list[Batch] = []
    once = iter(batches) is batches
    while True:
        count = 0
        for x, y in seen or batches:
            count += 1
            pair = x.to(device), y.to(device)
            yield pair
            if once and len(seen) < count:
                seen.append(pair)
        if not count:
            raise ValueError("learning initial scales: there are no training batches")


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, except that BatchNorm uses batch statistics, without tracking them."""
    modes = [(m, m.training) for m in model.modules()]
    norms = [(m, m.track_running_stats) for m in model.modules() if isinstance(m, _BatchNorm)]
    model.eval()
    for norm, _ in norms:
        norm.train()
        norm.track_running_stats = False
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode
        for norm, track in norms:
            norm.track_running_stats = track
