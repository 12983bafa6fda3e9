"""Row kernels against plain indexing, for every kind of index a tracer can produce."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.units.groups import ChannelGroup, Role, Slice
from pipeline.units.rows import Rows, named_parameters, zig_norms


def _slice(name: str, index: Tensor, dim: int = 0, role: Role = "producer") -> Slice:
    return Slice(name, dim, role, index if index.ndim == 2 else index[:, None])


def _network(seed: int = 0) -> tuple[dict[str, nn.Parameter], tuple[ChannelGroup, ...]]:
    """Plain, transposed, concat (shared BatchNorm), blocks and heads, one stray position."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "conv.w": (4, 3, 2, 2),
        "conv.b": (4,),
        "up.w": (2, 3, 2, 2),
        "cat.gamma": (8,),
        "cat.beta": (8,),
        "fused.w": (12, 5),
        "blocks.w": (6, 2),
        "other.w": (3, 3),
    }
    named = {
        n: nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64))
        for n, s in shapes.items()
    }
    four, three = torch.arange(4), torch.arange(3)
    groups = (
        ChannelGroup(
            "conv",
            4,
            (
                _slice("conv.w", four),
                _slice("conv.b", four),
                _slice("cat.gamma", four, role="norm"),
                _slice("cat.beta", four, role="norm"),
                _slice("cat.running_mean", four, role="norm"),
                _slice("other.w", four, role="consumer"),
            ),
        ),
        ChannelGroup(
            "up",
            3,
            (
                _slice("up.w", three, dim=1),
                _slice("cat.gamma", three + 4, role="norm"),
                _slice("cat.beta", three + 4, role="norm"),
            ),
        ),
        ChannelGroup("heads", 4, (_slice("fused.w", four[:, None] + torch.tensor([0, 4, 8])),)),
        ChannelGroup("blocks", 3, (_slice("blocks.w", torch.arange(6).view(3, 2)),)),
    )
    return named, groups


def _by_hand(
    groups: tuple[ChannelGroup, ...], a: dict[str, Tensor], b: dict[str, Tensor]
) -> Tensor:
    sums = []
    for group in groups:
        for i in range(group.size):
            total = torch.zeros((), dtype=torch.float64)
            for s in group.zig:
                if s.tensor in a:
                    x, y = (t[s.tensor].detach().movedim(s.dim, 0)[s.index[i]] for t in (a, b))
                    total = total + (x * y).sum()
            sums.append(total)
    return torch.stack(sums)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_norms_and_products_agree_with_plain_indexing(seed: int) -> None:
    named, groups = _network(seed)
    other, _ = _network(seed + 1)
    rows = Rows(named, groups)
    moves = [next(other[n] for n, p in named.items() if p is q).detach() for q in rows.params]
    torch.testing.assert_close(rows.square_norms(), _by_hand(groups, named, named))
    torch.testing.assert_close(rows.square_norms(moves), _by_hand(groups, other, other))
    torch.testing.assert_close(rows.dots(moves, rows.params), _by_hand(groups, other, named))


def test_scaling_touches_exactly_the_rows() -> None:
    named, groups = _network()
    before = {n: p.detach().clone() for n, p in named.items()}
    rows = Rows(named, groups)
    factors = torch.arange(1, rows.count + 1, dtype=torch.float64)
    with torch.no_grad():
        rows.scale_(factors)
    expected, first = {n: t.clone() for n, t in before.items()}, 0
    for group in groups:
        for i in range(group.size):
            for s in group.zig:
                if s.tensor in expected:
                    expected[s.tensor].movedim(s.dim, 0)[s.index[i]] *= factors[first + i]
        first += group.size
    for name, p in named.items():
        assert torch.equal(p.detach(), expected[name]), name
    assert torch.equal(named["other.w"], before["other.w"])
    assert named["cat.gamma"][7] == before["cat.gamma"][7]  # belongs to no channel


def test_channels_last_weights_are_scaled_in_place() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    storage, before = weight.data_ptr(), weight.detach().clone()
    group = ChannelGroup("w", 4, (_slice("w", torch.arange(4)),))
    rows = Rows({"w": weight}, [group])
    torch.testing.assert_close(rows.square_norms(), before.flatten(1).square().sum(1))
    with torch.no_grad():
        rows.scale_(torch.tensor([1.0, 0.0, 2.0, 3.0]))
    assert weight.data_ptr() == storage
    assert torch.equal(weight[2], 2 * before[2])


def test_counts() -> None:
    named, groups = _network()
    rows = Rows(named, groups)
    assert rows.count == 14
    assert rows.sizes == (4, 3, 4, 3)
    assert rows.entries.tolist() == [15] * 4 + [10] * 3 + [15] * 4 + [4] * 3
    assert rows.parameters_of.tolist() == [4, 3, 1, 1]
    shared = {id(p) for p, s in zip(rows.params, rows.shared, strict=True) if s}
    assert shared == {id(named["cat.gamma"]), id(named["cat.beta"])}
    assert rows.own().entries.tolist() == [13] * 4 + [8] * 3 + [15] * 4 + [4] * 3


def test_ranks_and_sums_by_group() -> None:
    named, groups = _network()
    rows = Rows(named, groups)
    keys = torch.tensor([3.0, 1, 2, 1, 0, 5, 4, 9, 9, 9, 9, 2, 1, 0])
    assert rows.rank_in_groups(keys).tolist() == [3, 0, 2, 1, 0, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    assert rows.rank(keys).tolist() == [7, 2, 5, 3, 0, 9, 8, 10, 11, 12, 13, 6, 4, 1]
    assert rows.sum_groups(keys).tolist() == [7, 9, 36, 3]
    assert rows.sum_groups(keys > 1).tolist() == [2, 2, 4, 1]


def test_frozen_parameters_and_groups_are_left_out() -> None:
    named, groups = _network()
    for name in ("conv.b", "fused.w"):
        named[name].requires_grad_(False)
    rows = Rows(named, groups)
    assert [g.name for g in rows.groups] == ["conv", "up", "blocks"]
    assert rows.entries[0] == 14
    assert len(Rows(named, groups, frozen=True).groups) == 4


def test_no_group_at_all() -> None:
    rows = Rows({}, ())
    assert rows.count == 0
    assert rows.params == []
    assert rows.summary() == {"group_sparsity": 0.0, "omega": 0.0}


def test_a_weight_of_two_channels_is_refused() -> None:
    named, groups = _network()
    with pytest.raises(ValueError, match=r"'conv.w': weights belong to two channels \('again'\)"):
        Rows(named, (*groups, ChannelGroup("again", 2, (_slice("conv.w", torch.arange(2)),))))


def test_a_tied_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    both = torch.arange(2)
    group = ChannelGroup("0", 2, (_slice("0.weight", both), _slice("1.weight", both)))
    assert set(named_parameters(model)) == {"0.weight", "1.weight"}
    norms = zig_norms(model, [group])["0"]
    torch.testing.assert_close(norms, model[0].weight.detach().double().norm(dim=1))


def test_tiny_channels_are_not_zero() -> None:
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 3, [1e-30, 0, 0], [3.0, 4.0, 0.0]]))
        model.bias.zero_()
    index = torch.arange(3)
    group = ChannelGroup("l", 3, (_slice("weight", index), _slice("bias", index)))
    norms = zig_norms(model, [group])["l"]
    assert norms.tolist() == pytest.approx([0.0, 1e-30, 5.0], rel=1e-6, abs=0)
    rows = Rows(named_parameters(model), [group])
    assert rows.summary() == {"group_sparsity": pytest.approx(1 / 3), "omega": pytest.approx(5.0)}


@pytest.mark.parametrize("piece", [4, 2**19])
def test_gram_is_norms_and_products_to_the_last_bit(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.units.rows.PIECE", piece)
    named, groups = _network()
    rows = Rows(named, groups)
    generator = torch.Generator().manual_seed(1)
    other = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in rows.params]
    norms, inner, slopes = rows.gram(other)
    assert torch.equal(norms, rows.square_norms())
    assert torch.equal(inner, rows.dots(other, rows.params))
    assert torch.equal(slopes, rows.square_norms(other))
    twice = rows.square_norms(weights=[4.0] * len(rows.params))
    torch.testing.assert_close(twice, 4.0 * norms)
