"""Every criterion against arithmetic by hand or by brute force."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.selection.criteria import (
    Batch,
    channel_rows,
    classification_loss,
    erdos_renyi,
    fpgm,
    grasp,
    snip,
    synflow,
    taylor,
    taylor_groups,
    uniform,
)
from pipeline.units.groups import ChannelGroup, Slice


def plain(tensor: str, role: str, size: int, dim: int = 0) -> Slice:
    return Slice(tensor, dim, role, torch.arange(size)[:, None])


def tiny() -> tuple[nn.Sequential, list[Batch]]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batches = [(torch.randn(5, 3).double(), torch.randint(0, 2, (5,))) for _ in range(2)]
    return net, batches


NAMES = ("0.weight", "2.weight")


def mean_loss(net: nn.Module, batches: list[Batch], temperature: float = 1.0) -> Tensor:
    losses = [cross_entropy(net(x) / temperature, y) for x, y in batches]
    return torch.stack(losses).mean()


def central_difference(net: nn.Module, batches: list[Batch], name: str) -> Tensor:
    weight = net.get_parameter(name).data
    slopes = torch.zeros_like(weight)
    for i in range(weight.numel()):
        values = []
        for h in (1e-6, -1e-6):
            weight.view(-1)[i] += h
            values.append(mean_loss(net, batches).item())
            weight.view(-1)[i] -= h
        slopes.view(-1)[i] = (values[0] - values[1]) / 2e-6
    return slopes


def test_snip_is_weight_times_numeric_gradient() -> None:
    net, batches = tiny()
    scores = snip(net, NAMES, batches, classification_loss())
    for name in NAMES:
        slopes = central_difference(net, batches, name)
        wanted = (net.get_parameter(name) * slopes).abs().detach()
        torch.testing.assert_close(scores[name], wanted, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_grasp_is_weight_times_explicit_hessian_times_gradient(temperature: float) -> None:
    net, batches = tiny()
    shapes = [net.get_parameter(n).shape for n in NAMES]
    sizes = [s.numel() for s in shapes]

    def loss_of(flat: Tensor) -> Tensor:
        parts = [p.view(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]
        weights = dict(zip(NAMES, parts, strict=True))
        losses = [
            cross_entropy(torch.func.functional_call(net, weights, (x,)) / temperature, y)
            for x, y in batches
        ]
        return torch.stack(losses).mean()

    flat = torch.cat([net.get_parameter(n).detach().flatten() for n in NAMES])
    hessian = torch.autograd.functional.hessian(loss_of, flat)
    gradient = torch.autograd.functional.jacobian(loss_of, flat)
    wanted = flat * (hessian @ gradient)
    scores = grasp(net, NAMES, batches, classification_loss(temperature))
    ours = torch.cat([scores[n].flatten() for n in NAMES])
    torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-8)
    assert ours.min() < 0 < ours.max()


def test_synflow_of_a_linear_net_by_hand() -> None:
    """R = 1'|B||A|1: the flow through A[j,i] is |A[j,i]| * sum_k |B[k,j]|."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        net[1].weight.copy_(torch.tensor([[-1.0, 0.5], [2.0, -4.0]]))
    scores = synflow(net, ("0.weight", "1.weight"), torch.randn(7, 2))
    assert scores["0.weight"].tolist() == [[3.0, 6.0], [13.5, 0.0]]
    assert scores["1.weight"].tolist() == [[3.0, 1.5], [6.0, 12.0]]


def test_synflow_is_conserved_through_batchnorm() -> None:
    """Without biases the flow into every layer is the same (Tanaka et al., theorem 1)."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, bias=False),
        nn.Flatten(),
        nn.Linear(12, 2, bias=False),
    )
    net(torch.randn(8, 1, 6, 6))  # move the running statistics
    scores = synflow(net, ("0.weight", "3.weight", "5.weight"), torch.randn(1, 1, 6, 6))
    flows = [float(s.sum()) for s in scores.values()]
    assert flows == pytest.approx([flows[0]] * 3, rel=1e-9)


def test_taylor_of_weights() -> None:
    net, batches = tiny()
    wanted = torch.zeros(4, 3, dtype=torch.float64)
    for batch in batches:
        slopes = central_difference(net, [batch], "0.weight")
        wanted += (net[0].weight.detach() * slopes).square() / 2
    scores = taylor(net, ("0.weight",), batches, classification_loss())
    torch.testing.assert_close(scores["0.weight"], wanted, atol=1e-9, rtol=1e-5)


@pytest.mark.parametrize("normed", [True, False])
def test_taylor_of_channels_is_the_slope_of_a_gate(normed: bool) -> None:
    """Brute force: a factor behind the norm (or the producer), its slope at 1, squared."""
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(4) if normed else nn.Identity()
    net = nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2))
    batches = [(torch.randn(6, 3), torch.randint(0, 2, (6,))) for _ in range(2)]
    if normed:
        nn.init.normal_(net[1].weight)
        nn.init.normal_(net[1].bias)
        net(batches[0][0])
    net.double()
    batches = [(x.double(), y) for x, y in batches]
    slices = [plain("0.weight", "producer", 4), plain("0.bias", "producer", 4)]
    if normed:
        buffers = ("weight", "bias", "running_mean", "running_var")
        slices += [plain(f"1.{n}", "norm", 4) for n in buffers]
    group = ChannelGroup("0", 4, (*slices, plain("3.weight", "consumer", 4, dim=1)))
    frozen = copy.deepcopy(net).eval()
    wanted = torch.zeros(4, dtype=torch.float64)
    for x, y in batches:
        gate = torch.ones(4, dtype=torch.float64, requires_grad=True)
        hidden = frozen[1](frozen[0](x)) * gate
        (slope,) = torch.autograd.grad(cross_entropy(frozen[3](torch.tanh(hidden)), y), gate)
        wanted += slope.square() / 2
    scores = taylor_groups(net, [group], batches, classification_loss())
    torch.testing.assert_close(scores["0"], wanted, atol=1e-14, rtol=1e-8)


def test_filter_distances_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, (1, 2)), nn.Linear(3, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]]).view(3, 1, 1, 2))
    producers = (plain("0.weight", "producer", 3), plain("0.bias", "producer", 3))
    group = ChannelGroup("0", 3, (*producers, plain("1.weight", "consumer", 3, dim=1)))
    assert fpgm(net, [group])["0"].tolist() == pytest.approx([8.0, 9.0, 7.0])


def test_coupled_producers_count_together() -> None:
    net = nn.ModuleDict({"a": nn.Linear(1, 2), "b": nn.Linear(1, 2)})
    with torch.no_grad():
        net["a"].weight.copy_(torch.tensor([[3.0], [0.0]]))
        net["b"].weight.copy_(torch.tensor([[4.0], [0.0]]))
    slices = (plain("a.weight", "producer", 2), plain("b.weight", "producer", 2))
    group = ChannelGroup("a", 2, slices)
    assert fpgm(net, [group])["a"].tolist() == [5.0, 5.0]


def test_channel_rows_follow_the_index() -> None:
    tensor = torch.arange(12).view(2, 6)
    piece = Slice("fc.weight", 1, "consumer", torch.tensor([[0, 1], [4, 5]]))
    assert channel_rows(tensor, piece).tolist() == [[0, 6, 1, 7], [4, 10, 5, 11]]


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    batches = [(torch.randn(6, 3), torch.randint(0, 2, (6,)))]
    loss, names = classification_loss(), ("0.weight", "2.weight")
    net[0].weight.requires_grad_(False)
    for criterion in (snip, grasp, taylor):
        criterion(net, names, batches, loss)
    synflow(net, names, batches[0][0])
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert not net[0].weight.requires_grad


SHAPES = {"stem": (16, 3, 3, 3), "body": (64, 16, 3, 3), "deep": (64, 64, 3, 3), "fc": (10, 64)}


def test_erdos_renyi_by_hand() -> None:
    """(16 + 3 + 3 + 3) / (16 * 3 * 3 * 3) against (10 + 64) / 640."""
    shapes = {"stem": SHAPES["stem"], "fc": SHAPES["fc"]}
    found = erdos_renyi(shapes, 0.2)
    scale = 0.2 * (432 + 640) / (25 + 74)
    assert found == pytest.approx({"stem": scale * 25 / 432, "fc": scale * 74 / 640})


@settings(max_examples=100, deadline=None)
@given(density=st.floats(0.01, 1.0))
def test_allocations_meet_the_density(density: float) -> None:
    sizes = {n: torch.Size(s).numel() for n, s in SHAPES.items()}
    for allocate in (uniform, erdos_renyi):
        found = allocate(SHAPES, density)
        assert all(0.0 < d <= 1.0 + 1e-12 for d in found.values())
        total = sum(found[n] * sizes[n] for n in SHAPES)
        assert total == pytest.approx(density * sum(sizes.values()), rel=1e-9)
