"""Early-bird: the reference distances and tickets, both windows, no ticket from constant scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from methods.early_bird import (
    EarlyBird,
    EarlyBirdConfig,
    emerged,
    flat_mask,
    pairwise_distances,
    recent_distances,
)
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import OptimizerConfig, Recipe, ScheduleConfig
from pipeline.units.groups import ChannelGroup, Slice, Units

TRACE = json.loads((Path(__file__).parent / "data" / "eb_mask_distance.json").read_text())


PHI = 0.6180339887498949


def gammas(sequence: dict[str, Any], call: int) -> Tensor:
    i = torch.arange(sum(sequence["bn_sizes"]), dtype=torch.float64)
    decay = sequence["amp"] * torch.exp(torch.tensor(-call / sequence["tau"], dtype=torch.float64))
    values = ((i + 1) * PHI).frac() + decay * torch.sin(2.3 * i + 1.1 * call)
    values[::5] *= -1
    return values.float()


class Norms(nn.Module):
    """Convolutions with BatchNorm, which is all that the method uses."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(1, n, 1) for n in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in sizes)

    def load(self, values: Tensor) -> None:
        with torch.no_grad():
            for norm, part in zip(
                self.norms, values.split([n.num_features for n in self.norms]), strict=True
            ):
                norm.weight.copy_(part)

    def units(self) -> Units:
        groups = []
        for k, norm in enumerate(self.norms):
            index = torch.arange(norm.num_features)[:, None]
            names = (("convs", "weight", "producer"), ("norms", "weight", "norm"))
            slices = tuple(Slice(f"{a}.{k}.{b}", 0, role, index) for a, b, role in names)
            groups.append(ChannelGroup(f"convs.{k}", norm.num_features, slices))
        return Units((), tuple(groups))


def percents() -> list[Any]:
    return [
        pytest.param(s, p, id=f"{s['name']}-{p['percent']}")
        for s in TRACE["sequences"]
        for p in s["percents"]
    ]


@pytest.mark.parametrize(("sequence", "percent"), percents())
def test_reference_masks_distances_and_tickets(
    sequence: dict[str, Any], percent: dict[str, Any]
) -> None:
    """The reference drops the channels up to and including rank floor(N p): one more than ours."""
    masks, first = [], None
    for call in percent["calls"]:
        scores = gammas(sequence, call["call"]).abs()
        assert scores.sort().values[percent["thre_index"]].item() == call["threshold"]
        one_more = (percent["thre_index"] + 1) / percent["n"]
        mask = flat_mask({"all": scores}, one_more)
        assert "".join(str(int(b)) for b in mask) == call["mask_bits"]
        masks.append(mask)
        distances = recent_distances(torch.stack(masks), "history", 5)
        wanted = call["dists_newest_vs_4_older_oldest_first"]
        if wanted is not None:
            assert distances[::-1] == pytest.approx(wanted, abs=1e-15)
        hit = emerged(distances, "history", 5, 0.1)
        assert hit is call["emerges"]
        first = call["call"] if hit and first is None else first
    assert first == percent["first_emerge_call"]


def search(config: EarlyBirdConfig, sizes: list[int], epochs: int) -> tuple[EarlyBird, Norms]:
    net = Norms(sizes)
    method = EarlyBird(config)
    method.prepare(net, net.units())
    method.optimizer(net, method.phases(Recipe(epochs=epochs))[0], Recipe(epochs=epochs))
    return method, net


def trained_epoch(method: EarlyBird, net: Norms, values: Tensor, epoch: int) -> EpochStats:
    net.load(values)
    stats = EpochStats(epoch, epoch, {"loss": 0.0})
    stats.logged["stop"] = float(method.end_epoch(net, stats))
    return stats


def test_watches_all_ratios_and_stops_at_the_chosen_one() -> None:
    sequence = TRACE["sequences"][2]
    method, net = search(EarlyBirdConfig(ratio=0.7), sequence["bn_sizes"], 20)
    stopped = None
    for epoch in range(20):
        stats = trained_epoch(method, net, gammas(sequence, epoch), epoch)
        lags = min(epoch, 4)
        for ratio in ("0.3", "0.5", "0.7"):
            assert sum(k.startswith("eb/dist_") and k.endswith(ratio) for k in stats.logged) == lags
        if stats.logged["stop"]:
            stopped = epoch
            break
    assert stopped is not None
    ticket = method.state_dict()["tickets"]["0.7"]
    assert ticket["epoch"] == stopped + 1 == stats.logged["eb/ticket_epoch/0.7"]
    assert "ticket-0.7" in stats.keep
    assert set(method.states()) == {"ticket-0.3", "ticket-0.5", "ticket-0.7"}
    kept = sum(int(m.sum()) for m in ticket["mask"].values())
    assert kept == 112 - int(0.7 * 112)
    assert {n: len(m) for n, m in ticket["mask"].items()} == {
        "convs.0": 16,
        "convs.1": 32,
        "convs.2": 64,
    }
    assert method.masks["0.7"].shape == (stopped + 1, 112)


def test_without_stop_the_search_goes_on_and_the_first_ticket_stays() -> None:
    sequence = TRACE["sequences"][0]
    method, net = search(EarlyBirdConfig(stop=False), sequence["bn_sizes"], 30)
    epochs = []
    for epoch in range(14):
        stats = trained_epoch(method, net, gammas(sequence, epoch), epoch)
        assert not stats.logged["stop"]
        epochs.append(method.tickets.get("0.5", {}).get("epoch"))
        emerged_now = method.tickets.get("0.5", {}).get("epoch") == epoch + 1
        assert ("ticket-0.5" in stats.keep) is emerged_now
    assert len({e for e in epochs if e}) == 1


@pytest.mark.parametrize("window", ["history", "consecutive"])
def test_constant_scales_give_no_ticket(window: str) -> None:
    method, net = search(EarlyBirdConfig(window=window), [6, 8, 6], 10)
    for epoch in range(10):
        stats = trained_epoch(method, net, torch.full((20,), 0.5), epoch)
        assert stats.logged == {"stop": 0.0}
    assert not method.tickets


@pytest.mark.parametrize(("window", "needed"), [("history", 5), ("consecutive", 6)])
def test_earliest_ticket_and_min_epoch(window: str, needed: int) -> None:
    settled = ((torch.arange(20) + 1) * PHI).frac()
    for first in (1, 4):
        method, net = search(EarlyBirdConfig(window=window, min_epoch=first), [6, 8, 6], 30)
        stops = [trained_epoch(method, net, settled, e).logged["stop"] for e in range(12)]
        assert stops.index(1.0) + 1 == first + needed - 1


def test_the_windows_differ() -> None:
    """A mask drifts by one channel in 20 per epoch: successive masks are close, others are not."""
    masks = torch.ones(8, 40, dtype=torch.bool)
    masks[torch.arange(40) < 2 * torch.arange(8)[:, None]] = False
    consecutive = recent_distances(masks, "consecutive", 5)
    history = recent_distances(masks, "history", 5)
    assert consecutive == pytest.approx([0.05] * 5)
    assert history == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert emerged(consecutive, "consecutive", 5, 0.1)
    assert not emerged(history, "history", 5, 0.1)
    assert emerged([0.1] * 4, "history", 5, 0.1), "the code accepts the threshold itself"
    assert not emerged([0.1] * 5, "consecutive", 5, 0.1), "the paper asks for less"


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(0.0, 4.0, width=32), min_size=2, max_size=40),
    ratio=st.floats(0.01, 0.99),
)
def test_flat_mask_is_exact_or_nothing(values: list[float], ratio: float) -> None:
    scores = torch.tensor(values)
    mask = flat_mask({"a": scores[:1], "b": scores[1:]}, ratio)
    dropped = int(round(ratio * len(values), 6))
    ordered = scores.sort().values
    if mask is None:
        assert ordered[dropped - 1] == ordered[dropped] > 0
    else:
        assert int((~mask).sum()) == dropped
        assert dropped == 0 or scores[~mask].max() <= scores[mask].min()


def test_pairwise_distances_are_a_metric_matrix() -> None:
    masks = torch.rand(6, 30, generator=torch.Generator().manual_seed(1)) > 0.5
    matrix = pairwise_distances(masks)
    assert torch.equal(matrix, matrix.T)
    assert not matrix.diagonal().any()
    assert matrix[1, 4].item() == pytest.approx((masks[1] != masks[4]).sum().item() / 30)


def test_continues_with_the_ticket_where_the_schedule_stands() -> None:
    config = EarlyBirdConfig(continue_training=True, ratios=(0.5,))
    schedule = ScheduleConfig(milestones=(3, 8))
    recipe = Recipe(epochs=10, optimizer=OptimizerConfig(lr=1.0), schedule=schedule)
    method, net = search(config, [6, 8, 6], 10)
    first, second = method.phases(recipe)
    assert (first.name, first.keep, second.name, second.start_from) == (
        "search",
        True,
        "continue",
        "current",
    )
    settled = ((torch.arange(20) + 1) * PHI).frac()
    epoch = 0
    while not trained_epoch(method, net, settled, epoch).logged["stop"]:
        epoch += 1
    assert epoch == 4
    assert method.plan() is None, "nothing is removed while the search runs"
    resumed = EarlyBird(config)
    resumed.prepare(net, net.units())
    resumed.load_state_dict(method.state_dict())
    for one in (method, resumed):
        optimizer = one.optimizer(net, second, recipe)
        one.schedule(optimizer, second, recipe)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
        assert one.plan().sparsity == pytest.approx(0.5)
    assert method.plan().digest() == resumed.plan().digest()
    net.norms[0].weight.grad = torch.zeros(6)
    method.after_backward(net, StepContext(second, 0, 0, 1))
    assert not net.norms[0].weight.grad.any(), "no sparsity term once the ticket trains"
    stops = [trained_epoch(method, net, settled, e).logged["stop"] for e in range(5, 10)]
    assert stops == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_no_ticket_leaves_an_epoch_to_finish_densely() -> None:
    method, _ = search(EarlyBirdConfig(continue_training=True), [4, 4], 10)
    phases = method.phases(Recipe(epochs=10))
    assert [p.epochs for p in phases] == [9, 10]
    method.optimizer(Norms([4, 4]), phases[1], Recipe(epochs=10))
    assert method.plan() is None


def test_a_ticket_never_empties_a_group() -> None:
    method, net = search(EarlyBirdConfig(ratios=(0.5,)), [4, 4], 20)
    values = torch.tensor([0.1, 0.2, 0.3, 0.4, 1.0, 2.0, 3.0, 4.0])
    for epoch in range(5):
        trained_epoch(method, net, values, epoch)
    mask = method.tickets["0.5"]["mask"]
    assert mask["convs.0"].tolist() == [False, False, False, True]
    assert mask["convs.1"].all()


def test_the_sparsity_term_and_saliency_are_slimmings() -> None:
    method, net = search(EarlyBirdConfig(penalty=0.5), [3, 2], 3)
    net.load(torch.tensor([0.2, -0.3, 0.0, 1.0, 2.0]))
    for norm in net.norms:
        norm.weight.grad = torch.zeros_like(norm.weight)
    method.after_backward(net, StepContext(Phase("search", 3), 0, 0, 1))
    assert net.norms[0].weight.grad.tolist() == [0.5, -0.5, 0.0]
    saliency = method.saliency(net, net.units())
    assert saliency["convs.0"].tolist() == pytest.approx([0.2, 0.3, 0.0])


def test_config_is_checked() -> None:
    with pytest.raises(ValidationError, match="not among ratios"):
        EarlyBirdConfig(ratio=0.9)
    with pytest.raises(ValidationError, match="needs stop"):
        EarlyBirdConfig(continue_training=True, stop=False)


def test_logs_the_whole_matrix_of_distances() -> None:
    sequence = TRACE["sequences"][1]
    method, net = search(EarlyBirdConfig(stop=False), sequence["bn_sizes"], 20)
    rows = []
    for epoch in range(9):
        logged = trained_epoch(method, net, gammas(sequence, epoch), epoch).logged
        rows.append([logged[f"mask_distance/0.3/{lag}"] for lag in range(epoch + 1)])
        assert f"mask_distance/0.3/{epoch + 1}" not in logged
    matrix = pairwise_distances(method.masks["0.3"]).tolist()
    assert rows == [row[i::-1] if i else row[:1] for i, row in enumerate(matrix)]
    assert rows[8][1] == recent_distances(method.masks["0.3"], "history", 5)[0]
