"""A budget of measured time: the search by a clock that is ours, and once by the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.data.config import DataConfig
from pipeline.data.prepare import prepare
from pipeline.data.prepared import load_prepared
from pipeline.files import read_json
from pipeline.measure.count import MacsModel, count
from pipeline.measure.harness import WARM_UP
from pipeline.measure.latency_cost import LatencyCost, Timer
from pipeline.selection.select import select
from pipeline.selection.target import LatencyProbe, Target
from pipeline.study import paths
from pipeline.study.execution.runtime import Workplace
from pipeline.study.params.load import ParamsError, load_params
from pipeline.study.records.artifacts import PrunedArtifact, TrainArtifact
from pipeline.study.records.record import write_record
from pipeline.training.loop.job import Silent
from pipeline.units.groups import Granularity
from pipeline.units.trace import trace_units
from stages import evaluate, finetune, prune, train

S = Granularity.STRUCTURED
ROOT = Path(__file__).resolve().parents[3]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(20 * 16, 4),
    )  # fmt: skip


DENSE = sum(p.numel() for p in network().parameters())
INPUTS = torch.zeros(1, 3, 8, 8)
UNITS = trace_units(network(), INPUTS, never_prune=("5",))
SCORES = {g.name: (torch.arange(g.size) * 0.618) % 1.0 for g in UNITS.prunable}


def by_macs(model: nn.Module, inputs: Tensor) -> float:
    """A clock that counts."""
    return float(count(model, inputs).macs)


def searched(target: Target, timer: Timer = by_macs) -> tuple[Any, LatencyCost]:
    cost = LatencyCost(network(), INPUTS, UNITS, target.probe, timer)
    return select(SCORES, S, target, cost), cost


def latency(value: float, **probe: Any) -> Target:
    return Target(rule="latency", value=value, latency=LatencyProbe(repeats=3, **probe))


EXACT = searched(latency(0.4))[0].digest()


@settings(max_examples=8, deadline=None)
@given(st.floats(0.01, 0.8))
def test_with_a_clock_that_counts_it_is_the_search_for_macs(value: float) -> None:
    plan, cost = searched(latency(value))
    exact = select(
        SCORES, S, Target(rule="macs", value=value), MacsModel(network(), INPUTS, UNITS).macs
    )
    assert plan.digest() == exact.digest()
    assert cost.summary(plan, value)["achieved"] >= value - 1e-12


@settings(max_examples=10, deadline=None)
@given(st.floats(0.05, 0.6), st.integers(1, 8), st.integers(0, 100))
def test_a_noisy_clock_is_asked_a_bounded_number_of_times(
    value: float, probes: int, seed: int
) -> None:
    calls = [0]
    noise = torch.Generator().manual_seed(seed)

    def noisy(model: nn.Module, inputs: Tensor) -> float:
        calls[0] += 1
        return by_macs(model, inputs) * float(1 + 0.1 * torch.rand((), generator=noise))

    plan, cost = searched(latency(value, probes=probes), noisy)
    assert len(cost.probes) <= probes
    assert calls[0] == len(cost.probes) * 2 * (WARM_UP + 3)
    found = {m.units_removed: m.ratio for m in cost.probes}  # the last verdict on each
    removed = plan.total - plan.kept
    assert found[removed] <= 1 - value
    if len(cost.probes) < probes:  # it ended by itself: the neighbour is too slow, measured twice
        twice = [m.ratio for m in cost.probes if m.units_removed == removed - 1]
        assert removed == 1 or (len(twice) >= 2 and twice[-1] > 1 - value)


def test_a_wrong_verdict_is_taken_back() -> None:
    """One probe, wrong by far, does not mislead the search."""
    for wrong in range(1, 6):
        for factor in (0.01, 100.0):
            probe = [-1]

            def liar(
                model: nn.Module, inputs: Tensor, probe: list[int] = probe, wrong: int = wrong,
                factor: float = factor,
            ) -> float:  # fmt: skip
                whole = _is_dense(model)
                probe[0] += whole
                lies = not whole and probe[0] // (WARM_UP + 3) == wrong
                return by_macs(model, inputs) * (factor if lies else 1.0)

            assert searched(latency(0.4, probes=40), liar)[0].digest() == EXACT, (wrong, factor)


def _is_dense(model: nn.Module) -> bool:
    return sum(p.numel() for p in model.parameters()) == DENSE


def test_a_machine_that_slows_down_changes_nothing() -> None:
    """Dense and pruned are measured in turns, so both slow down."""
    turn = [0]

    def slowing(model: nn.Module, inputs: Tensor) -> float:
        turn[0] += 1
        return by_macs(model, inputs) * 1.05 ** (turn[0] // 2)

    assert searched(latency(0.4), slowing)[0].digest() == searched(latency(0.4))[0].digest()


def test_one_interrupted_forward_does_not_count() -> None:
    turn = [0]

    def hiccup(model: nn.Module, inputs: Tensor) -> float:
        turn[0] += 1
        return by_macs(model, inputs) * (50.0 if turn[0] % 12 == 0 else 1.0)

    assert searched(latency(0.4), hiccup)[0].digest() == searched(latency(0.4))[0].digest()


def test_what_is_told_was_measured_after_the_search() -> None:
    lucky = [True]

    def flattering(model: nn.Module, inputs: Tensor) -> float:
        return by_macs(model, inputs) * (0.9 if lucky[0] and not _is_dense(model) else 1.0)

    plan, cost = searched(latency(0.3), flattering)
    lucky[0] = False
    told = cost.summary(plan, 0.3)
    assert told["asked"] == 0.3
    assert told["achieved"] == pytest.approx(1 - told["pruned_ms"] / told["dense_ms"])
    assert told["achieved"] < min(1 - m.ratio for m in cost.probes if 1 - m.ratio >= 0.3)
    assert len(told["probes"]) == len(cost.probes)


def test_layers_alike_and_multiples() -> None:
    target = latency(0.3).model_copy(update={"scope": "layer", "round_to": 4})
    plan, cost = searched(target)
    assert all(int(mask.sum()) % 4 == 0 for mask in plan.keep.values())
    assert 0.3 <= cost.summary(plan, 0.3)["achieved"] < 0.6


def test_nothing_to_remove_needs_no_clock() -> None:
    plan, cost = searched(latency(0.0))
    assert plan.sparsity == 0
    assert not cost.probes


def test_refusals_in_words() -> None:
    with pytest.raises(
        ValueError, match=r"latency cannot be cut by 0.3.*still takes 1.0000 of the"
    ):
        searched(latency(0.3), lambda *_: 1.0)
    weights = {"0.weight": torch.ones(12, 3, 3, 3)}
    with pytest.raises(ValueError, match="latency needs structured units: zeros save no time"):
        select(weights, Granularity.UNSTRUCTURED, latency(0.3), lambda _: 1.0)
    with pytest.raises(ValueError, match="latency needs a cost function"):
        select(SCORES, S, latency(0.3))


PARAMS = f"""
study: t
root: {ROOT}
data: {{name: digits, limit: 100}}
train: {{epochs: 0, batch_size: 50}}
evaluate: {{batch_size: 400, latency_batches: [1], latency_repeats: 3}}
methods: {{slimming: {{}}}}
trainings:
  a: {{model: {{family: small, name: resnet8, width: 48}}, method: slimming}}
prunings:
  fast:
    training: a
    target:
      {{rule: latency, value: 0.15, latency: {{batch_size: 64, threads: 1, repeats: 5, probes: 4}}}}
"""


def test_the_real_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prune measures and stores; evaluate reads: its record is the same on every run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    prepare(DataConfig(name="digits", limit=100), paths.PREPARED)
    params, prepared = load_params(), load_prepared(paths.PREPARED)
    place = Workplace(torch.device("cpu"), paths.checkpoints("train", "a"))
    write_record(paths.record("train", "a"), train.run(params, "a", prepared, place, Silent()))
    out = PrunedArtifact(paths.prune("fast"))
    plan = prune.run(params.pruning("fast"), TrainArtifact(paths.training("a")), prepared, out)
    assert 0 < plan.kept < plan.total
    told = read_json(paths.prune("fast") / "spec.json")["latency"]
    assert told["asked"] == 0.15
    assert told["achieved"] == pytest.approx(1 - told["pruned_ms"] / told["dense_ms"])
    assert 1 <= len(told["probes"]) <= 4
    finetune.run(params, "fast", prepared, place, Silent())
    records = [evaluate.run(params, "fast", prepared, place) for _ in range(2)]
    assert records[0] == records[1]
    assert records[0].target["rule"] == "latency"
    assert records[0].target["achieved"] == told["achieved"]
    assert records[0].counts.macs_kept < records[0].counts.macs_dense


def test_masks_of_weights_are_refused_before_any_work(tmp_path: Path) -> None:
    text = PARAMS.replace("    training: a\n", "    training: a\n    granularity: unstructured\n")
    (tmp_path / "params.yaml").write_text(
        text.replace("training: a\n", "training: a\n    saliency: magnitude\n", 1)
    )
    with pytest.raises(ParamsError, match=r"prunings\.fast\.target\.rule: 'latency' counts what"):
        load_params(tmp_path / "params.yaml")
