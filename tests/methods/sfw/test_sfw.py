"""The SFW optimizer: always feasible, resumable, no synchronisation with the device."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from methods.sfw import SFW
from methods.sfw.constraints import ConvexSet, KSparsePolytope, LpBall
from tests.methods.sfw.sfw_toys import PHASE, RECIPE, prepared, toy_batches


def _train(model: nn.Module, optimizer: SFW, batches: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rescale", ["gradient", "diameter", "none"])
@pytest.mark.parametrize(
    "feasible",
    [
        KSparsePolytope(30, 0.05),
        LpBall(1.0, 600, 0.5),
        LpBall(2.0, 600, 1.0),
        LpBall(math.inf, 600, 0.1),
    ],
    ids=["k_sparse", "l1", "l2", "linf"],
)
def test_a_thousand_steps_stay_feasible(
    feasible: ConvexSet, rescale: str, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(0)
    w = nn.Parameter(feasible.shift_inside(torch.randn(20, 30, generator=g).to(dtype)))
    drift = torch.randn(20, 30, generator=g).to(dtype)
    groups = [{"params": [w], "constraint": feasible.plain()}]
    optimizer = SFW(groups, lr=0.3, rescale=rescale)
    tol = 1e-6 if dtype == torch.float32 else 1e-12
    inside = torch.ones((), dtype=torch.bool)
    for step in range(1000):
        w.grad = drift + torch.randn(20, 30, generator=g).to(dtype) * (step % 7)
        optimizer.step()
        inside &= feasible.contains(w, tol)
    assert inside
    assert torch.isfinite(w).all()
    assert torch.linalg.vector_norm(w) > 0.1 * feasible.diameter / 2


def test_gradient_rescaling_moves_as_far_as_sgd() -> None:
    feasible = LpBall(2.0, 12, 50.0)
    w = nn.Parameter(torch.randn(12, dtype=torch.float64))
    before, w.grad = w.detach().clone(), torch.randn(12, dtype=torch.float64)
    SFW([{"params": [w], "constraint": feasible.plain()}], lr=0.25).step()
    assert (w - before).norm().item() == pytest.approx(0.25 * w.grad.norm().item(), rel=1e-12)


def test_unconstrained_tensors_take_averaged_gradient_steps() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = SFW([w], lr=0.5, momentum=0.9)
    w.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert torch.equal(w, torch.tensor([0.5, 2.5]))
    w.grad = torch.tensor([0.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor([0.05, 2.95]))


def test_a_tensor_without_gradient_shifts_nothing() -> None:
    """The constraint belongs to the tensor, not to a position."""
    results = []
    for frozen in (True, False):
        method, model = prepared()
        if frozen:
            model[1].weight.requires_grad_(False)
        optimizer = method.optimizer(model, PHASE, RECIPE)
        for p in model.parameters():
            p.grad = torch.ones_like(p) * 0.01
        model[1].weight.grad = None
        optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_steps_do_not_depend_on_the_memory_layout() -> None:
    feasible = KSparsePolytope(9, 0.4)
    g = torch.Generator().manual_seed(1)
    start, gradients = torch.rand(4, 6, 3, 3, generator=g), torch.randn(5, 4, 6, 3, 3, generator=g)
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        w = nn.Parameter(feasible.shift_inside(start).to(memory_format=layout))
        optimizer = SFW([{"params": [w], "constraint": feasible.plain()}], lr=0.5)
        for i, gradient in enumerate(gradients):
            w.grad = gradient.to(memory_format=layout) if i % 2 else gradient.clone()
            optimizer.step()
        ends.append(w.detach())
    torch.testing.assert_close(ends[0], ends[1].contiguous(), rtol=1e-6, atol=1e-7)


def test_strided_views_are_stepped_too() -> None:
    feasible = KSparsePolytope(2, 1.0)
    base = torch.zeros(4, 6)
    w = base[:, ::2].requires_grad_()
    w.grad = torch.arange(12.0).view(4, 3)
    SFW([{"params": [w], "constraint": feasible.plain()}], 0.5, 0.0, "none").step()
    assert base.nonzero().tolist() == [[3, 2], [3, 4]]
    assert base[3, 4] == -0.5


def test_nan_gradients_are_not_hidden() -> None:
    w = nn.Parameter(torch.zeros(6))
    w.grad = torch.tensor([1.0, float("nan"), 0, 0, 0, 0])
    SFW([{"params": [w], "constraint": KSparsePolytope(2, 1.0).plain()}]).step()
    assert w.isnan().all()


def test_resume_is_bit_exact() -> None:
    method, model = prepared()
    batches = toy_batches(8)
    optimizer = method.optimizer(model, PHASE, RECIPE)
    _train(model, optimizer, batches[:4])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    _train(model, optimizer, batches[4:])

    again, twin = prepared()
    twin.load_state_dict(saved[0])
    resumed = again.optimizer(twin, PHASE, RECIPE)
    resumed.load_state_dict(saved[1])
    _train(twin, resumed, batches[4:])
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_state_survives_weights_only_files(tmp_path: Any) -> None:
    method, model = prepared()
    optimizer = method.optimizer(model, PHASE, RECIPE)
    _train(model, optimizer, toy_batches(1))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert loaded["param_groups"] == optimizer.state_dict()["param_groups"]
    copied = copy.deepcopy(optimizer)
    _train(model, copied, toy_batches(1))


class _NoSync(TorchDispatchMode):
    """Refuses every operation that would make the host wait for the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in self.WAITING, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rescale", ["gradient", "diameter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("constraint", ["k_sparse", "l1", "l2", "linf", "none"])
def test_no_host_synchronisation(constraint: str, dtype: torch.dtype, rescale: str) -> None:
    """bfloat16 takes the code path of a GPU."""
    method, model = prepared(constraint=constraint, rescale=rescale)
    model.to(dtype)
    optimizer = method.optimizer(model, PHASE, RECIPE)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        with _NoSync():
            optimizer.step()


def test_the_sync_test_can_fail() -> None:
    with pytest.raises(AssertionError), _NoSync():
        torch.ones(()).item()


@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"momentum": 1.0}, {"rescale": "fast"}], ids=lambda s: next(iter(s))
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SFW"):
        SFW([nn.Parameter(torch.zeros(1))], **settings)
