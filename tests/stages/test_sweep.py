"""The sweep: exact counts whatever is ranked, exact surgery at every point, records that add up."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared, load_prepared
from pipeline.files import tensors_sha256, write_json
from pipeline.measure.harness import output_difference
from pipeline.study import paths
from pipeline.study.execution.runtime import Workplace
from pipeline.study.params.load import Params, load_params
from pipeline.study.params.schema import SweepParams
from pipeline.study.records.artifacts import NetworkSpec, TrainArtifact
from pipeline.study.records.record import TrainRecord, from_json, sha, to_json, write_record
from pipeline.study.records.sizes import distribution_of
from pipeline.study.records.sweep import Histogram, SweepRecord
from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity
from pipeline.units.surgery import apply_plan
from pipeline.units.trace import trace_units
from stages.sweep import plan_of, plans, ranking, run

PARAMS = """
study: t
data: {name: digits, val_size: 100, limit: 200}
train: {epochs: 1, optimizer: {lr: 0.1}}
methods: {dense: {}}
trainings: {a: {model: {family: small, name: resnet8, width: 4}, method: dense}}
prunings: {}
sweep:
  trainings: [a]
  sparsities: [0.9, 0.5]
  ranked: [channels, weights, all]
  scopes: [layer, global]
  recalibration_batches: 1
"""
EVERY = SweepParams(
    sparsities=(0.0, 0.3, 0.9, 0.99),
    ranked=("weights", "all", "channels"),
    scopes=("global", "layer"),
)


def tiny() -> nn.Module:
    """Two convolutions with BatchNorm, one of them with a bias, and a linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    for norm in (model[1], model[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture
def net() -> tuple[nn.Module, object]:
    model = tiny()
    return model, trace_units(model, torch.randn(1, 1, 6, 6), ())


def test_what_is_ranked(net) -> None:
    model, units = net
    assert sum(s.numel() for s in ranking("weights", model, units).values()) == 36 + 216 + 18
    everything = ranking("all", model, units)
    assert set(everything) == {name for name, _ in model.named_parameters()}
    assert sum(s.numel() for s in everything.values()) == 36 + 4 + 8 + 216 + 12 + 18 + 3
    assert sum(s.numel() for s in ranking("channels", model, units).values()) == 4 + 6


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9, 0.99])
def test_all_parameters_are_one_ranking(net, sparsity: float) -> None:
    """The floor(s N) smallest entries of the network are zero, BatchNorm's among them."""
    model, units = net
    flat = torch.cat([p.detach().abs().flatten() for p in model.parameters()])
    gone = math.floor(round(sparsity * flat.numel(), 6))
    limit = flat.sort().values[gone]  # all magnitudes differ
    apply_plan(plan_of("all", "global", sparsity, ranking("all", model, units)), model, units)
    left = torch.cat([p.detach().abs().flatten() for p in model.parameters()])
    assert int((left == 0).sum()) == gone
    assert torch.equal(left, flat * (flat >= limit))


@pytest.mark.parametrize(("sparsity", "removed"), [(0.0, 0), (0.1, 28), (0.5, 147), (0.9, 266)])
def test_the_count_of_miaos_program(net, sparsity: float, removed: int) -> None:
    """Below the entry int((1 - f) N) of the sorted list with one extra zero; N = 297."""
    model, units = net
    scores = ranking("all_strict", model, units)
    plan = plan_of("all_strict", "global", sparsity, scores)
    assert plan.total - plan.kept == removed
    ordered = torch.cat([torch.zeros(1), *(s.flatten() for s in scores.values())]).sort().values
    threshold = ordered[int(sparsity * plan.total + 1e-6)]
    assert all(torch.equal(plan.keep[n], s >= threshold) for n, s in scores.items())
    flat = {"a": torch.tensor([1.0, 1.0, 2.0, 2.0])}
    assert plan_of("all_strict", "global", 0.5, flat).kept == 4  # none of equal entries


def test_ties_go_in_the_order_of_the_network() -> None:
    scores = {"a": torch.ones(3), "b": torch.ones(3)}
    plan = plan_of("all", "global", 0.5, scores)
    assert [plan.keep[n].tolist() for n in "ab"] == [[False] * 3, [True] * 3]


def test_every_structured_point_is_exact(net) -> None:
    """The law masked == shrunk, at every sparsity, whole groups gone included."""
    model, units = net
    batch: list[tuple[Tensor, None]] = [(torch.randn(5, 1, 6, 6), None)]
    seen = 0
    for plan, how in plans(EVERY, model, units):
        if plan.granularity is not Granularity.STRUCTURED:
            continue
        masked, shrunk = copy.deepcopy(model), copy.deepcopy(model)
        enforce(plan, masked, units)
        apply_plan(plan, shrunk, units)
        assert output_difference(masked, shrunk, batch)[1] < 1e-5, how
        seen += 1
    assert seen == 8


def test_no_sparsity_is_out_of_reach(net) -> None:
    """A group keeps a channel while that leaves enough to remove; then whole groups go."""
    scores = ranking("channels", *net)
    plan = plan_of("channels", "global", 0.8, scores)
    assert [int(kept.sum()) for kept in plan.keep.values()] == [1, 1]
    assert plan_of("channels", "global", 0.9, scores).kept == 1


def test_points_do_not_depend_on_how_params_yaml_lists_them(net) -> None:
    turned = EVERY.model_copy(
        update={k: getattr(EVERY, k)[::-1] for k in ("sparsities", "ranked", "scopes")}
    )
    one, other = ([how for _, how in plans(p, *net)] for p in (EVERY, turned))
    assert one == other
    assert len(one) == 4 * 3 * 2


def test_a_network_without_channel_groups_says_so() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    units = trace_units(model, torch.randn(1, 4), ())
    with pytest.raises(ValueError, match=r"sweep\.ranked: channels"):
        ranking("channels", model, units)


def test_weight_distribution_is_counted_from_the_network() -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[20.0, -10.0, 0.5], [-0.05, 0.0, 1e-12]]))
        model.bias.copy_(torch.tensor([3.0, -2e-7]))
    found = distribution_of(model)
    assert found.thresholds[:2] == (10.0, 1.0)
    assert found.above == (1, 3, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6)
    overall, weight = found.layers["all"], found.layers["weight"]
    assert (overall.zeros, sum(overall.counts), weight.zeros, sum(weight.counts)) == (1, 7, 1, 5)
    assert overall.first == 0  # 1e-12 lies below the first edge
    assert overall.counts[0] == overall.counts[-1] == 1
    assert found.layers["bias"].first > 0
    nn.init.zeros_(model.weight)
    assert distribution_of(model).layers["weight"] == Histogram(6, 0, ())


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Params, Prepared]:
    """A training as `train` leaves it, untrained."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    params = load_params()
    prepare(params.file.data, paths.PREPARED)
    prepared = load_prepared(paths.PREPARED)
    network = NetworkSpec.of(params.training("a").model, prepared.info)
    torch.manual_seed(3)
    artifact = TrainArtifact(paths.training("a"))
    weights = network.build().state_dict()
    artifact.write_state("final", weights, None)
    spec = {"network": network.to_json(), "training": "a", "method": "dense", "seed": 0}
    write_json(artifact.folder / "spec.json", spec)
    training = TrainRecord(
        training="a",
        model="small/resnet8",
        model_args={"width": 4},
        method="dense",
        method_params={},
        recipe={},
        data="digits",
        seed=0,
        parents={},
        curve=(),
        weights_sha=tensors_sha256(weights),
    )
    write_record(paths.record("train", "a"), training)
    return params, prepared


def test_a_record_counts_what_is_left(study, tmp_path: Path) -> None:
    params, prepared = study
    place = Workplace(torch.device("cpu"), tmp_path / "work")
    record = run(params, "a", prepared, place)
    assert from_json(SweepRecord, to_json(record)) == record
    assert len(record.points) == 2 * 3 * 2 * 2
    for point in record.points:
        removed = point.units - point.units_kept
        if point.scope == "global":
            assert removed == math.floor(round(point.sparsity * point.units, 6))
        if point.ranked == "channels":
            assert point.params_kept < record.params_dense
            assert point.macs_kept < record.macs_dense
        else:
            assert point.params_kept == record.params_dense
            assert record.params_dense - point.params_nonzero >= removed  # zeros at birth: betas
        if point.ranked == "all":
            assert point.units == record.params_dense
    assert record.weights is not None
    assert record.weights.layers["all"].zeros > 0
    plain, fresh = (p.scores for p in record.points[:2])
    assert plain != fresh  # untrained statistics, then those of the data


def test_one_more_sparsity_leaves_the_other_points_as_they_were(study, tmp_path: Path) -> None:
    params, prepared = study
    place = Workplace(torch.device("cpu"), tmp_path / "work")
    before = run(params, "a", prepared, place)
    Path("params.yaml").write_text(PARAMS.replace("[0.9, 0.5]", "[0.9, 0.5, 0.7]"))
    after = run(load_params(), "a", prepared, place)
    assert {sha(leaf) for leaf in before.leaves()} < {sha(leaf) for leaf in after.leaves()}
    assert len(after.points) == len(before.points) * 3 // 2
    assert replace(after, points=before.points) == before
