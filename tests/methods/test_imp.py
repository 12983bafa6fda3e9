"""IMP: masks bit for bit, exact counts, permanent zeros."""

from __future__ import annotations

import copy
import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from methods.imp import IMP, IMPConfig, keep_largest
from pipeline.registry import method_spec
from pipeline.selection.criteria import erdos_renyi
from pipeline.training.phases import Phase
from tests.methods.imp_net import (
    RECIPE,
    TRACE,
    apply_plan,
    bits,
    pretend_to_train,
    run_rounds,
    started,
    trace_net,
)


def test_rates() -> None:
    for case in TRACE["rates"]:
        config = IMPConfig(rounds=case["priter"], target=case["pr"])
        assert config.rate == pytest.approx(case["per_round_rate"], rel=1e-12)
        densities = [(1 - config.rate) ** k for k in range(1, case["priter"] + 1)]
        assert densities == pytest.approx(case["density_by_round"], rel=1e-9)


@pytest.mark.parametrize(
    "case", TRACE["seed_repo"], ids=lambda c: f"{c['pr']}-{c['priter']}-{c['reinit']}"
)
def test_masks_of_the_seed_bit_for_bit(case: dict[str, Any]) -> None:
    net = trace_net()
    initial = copy.deepcopy(net.state_dict())
    rewind = "init" if case["reinit"] == "init" else "lr"
    config = IMPConfig(rounds=case["priter"], target=case["pr"], rule="quantile", rewind=rewind)
    method = started(config, net)
    pretend_to_train(net, 0)
    for number, expected in enumerate(case["rounds"], start=1):
        method.end_phase(net, Phase(f"round-{number - 1}", 1))
        for layer, wanted in expected["mask_bits"].items():
            assert bits(method.tightened[f"{layer}.weight"]) == wanted
        assert sum(int(m.sum()) for m in method.tightened.values()) == expected["alive_after"]
        method.optimizer(net, Phase(f"round-{number}", 1), RECIPE)
        if rewind == "init":  # the seed resets its convolutions only
            net.load_state_dict({k: v for k, v in initial.items() if k[0] != "3"}, strict=False)
        apply_plan(method, net)
        for layer, digest in expected["weight_sha256_after_reinit"].items():
            weight = net.get_parameter(f"{layer}.weight").detach()
            if not weight.any():  # of an emptied layer the seed keeps other signs of zero
                continue
            raw = weight.numpy().astype("<f4").tobytes()
            assert hashlib.sha256(raw).hexdigest() == digest, (number, layer)
        pretend_to_train(net, number)
        apply_plan(method, net)


@pytest.mark.parametrize("case", TRACE["openlth"], ids=["all", "ignore-fc", "035"])
def test_levels_of_openlth_bit_for_bit(case: dict[str, Any]) -> None:
    net = trace_net()
    initial = copy.deepcopy(net.state_dict())
    config = IMPConfig(
        rounds=len(case["levels"]),
        prune_per_round=case["pruning_fraction"],
        rule="openlth",
        layers="all",
        ignore=(case["layers_to_ignore"],) if case["layers_to_ignore"] else (),
        rewind="init",
    )
    levels = run_rounds(started(config, net), net, initial)[1:]
    for level, expected in zip(levels, case["levels"], strict=True):
        for name, wanted in expected["mask_bits"].items():
            kept = level.get(name, torch.ones(len(wanted)))
            assert bits(kept) == wanted, (expected["level"], name)


def test_quantile_rule_is_torchs_quantile() -> None:
    scores = {"a": torch.rand(501, generator=torch.Generator().manual_seed(0))}
    alive = {"a": torch.ones(501, dtype=torch.bool)}
    for rate in (0.05, 0.2, 0.5, 0.73, 0.99):
        kept = keep_largest(scores, alive, rate, "quantile")["a"]
        assert torch.equal(kept, scores["a"] > torch.quantile(scores["a"], rate))


@settings(max_examples=25, deadline=None)
@given(
    rate=st.floats(0.05, 0.9),
    scope=st.sampled_from(["global", "layer"]),
    layers=st.sampled_from(["conv", "all"]),
    rewind=st.sampled_from(["init", "lr"]),
)
def test_masks_shrink_by_exact_counts(rate: float, scope: str, layers: str, rewind: str) -> None:
    net = trace_net()
    initial = copy.deepcopy(net.state_dict())
    config = IMPConfig(rounds=3, prune_per_round=rate, scope=scope, layers=layers, rewind=rewind)
    rounds = run_rounds(started(config, net), net, initial if rewind == "init" else None)
    for before, after in zip(rounds, rounds[1:], strict=False):
        counts = [(int(before[n].sum()), int(after[n].sum())) for n in before]
        for name in before:
            assert not (after[name] & ~before[name]).any(), "a weight was resurrected"
        if scope == "global":
            counts = [tuple(map(sum, zip(*counts, strict=True)))]
        for alive, left in counts:
            assert left == alive - int(np.floor(round(rate * alive, 6)))


def test_erk_rounds_are_nested_and_exact() -> None:
    net = trace_net()
    method = started(IMPConfig(rounds=3, prune_per_round=0.3, scope="erk", rewind="lr"), net)
    rounds = run_rounds(method, net, None)
    shapes = {n: tuple(net.get_parameter(n).shape) for n in method.names}
    for number, (before, after) in enumerate(zip(rounds, rounds[1:], strict=False), start=1):
        densities = erdos_renyi(shapes, 0.7**number)
        for name, mask in after.items():
            assert not (mask & ~before[name]).any()
            assert int(mask.sum()) == int(densities[name] * mask.numel())
    with pytest.raises(ValidationError, match="erk counts exactly"):
        IMPConfig(scope="erk", rule="quantile")


def test_equal_magnitudes_go_in_order() -> None:
    scores = {"a": torch.ones(3), "b": torch.ones(3)}
    alive = {name: torch.ones(3, dtype=torch.bool) for name in scores}
    kept = keep_largest(scores, alive, 4 / 6, "exact")
    assert (bits(kept["a"]), bits(kept["b"])) == ("000", "011")


def test_which_layers() -> None:
    net = trace_net()
    assert started(IMPConfig(), net).names == ("0.weight", "1.weight", "2.weight")
    assert started(IMPConfig(layers="all", ignore=("0", "3")), net).names == (
        "1.weight",
        "2.weight",
    )
    with pytest.raises(ValueError, match="'fc' is no layer"):
        started(IMPConfig(ignore=("fc",)), net)
    with pytest.raises(ValueError, match="no weight is left"):
        started(IMPConfig(ignore=("0", "1", "2")), net)


@pytest.mark.parametrize("rule", ["exact", "quantile", "openlth"])
def test_frozen_weights_are_neither_ranked_nor_removed(rule: str) -> None:
    """2 of 4 * 2 * 9 = 72 in the frozen first layer are the smallest, and are kept."""
    net = trace_net()
    net[0].weight.requires_grad_(False).mul_(1e-3)
    method = started(IMPConfig(rounds=1, prune_per_round=0.5, rule=rule, rewind="lr"), net)
    assert method.names == ("1.weight", "2.weight")
    _, mask = run_rounds(method, net, None)
    assert mask.keys() == {"1.weight", "2.weight"}
    alive = sum(int(m.sum()) for m in mask.values())
    assert alive in (117, 116)  # half of 216 + 18; openlth removes one more
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no weight is left to prune.*4 frozen"):
        started(IMPConfig(), net)


def test_layers_may_have_rates_of_their_own() -> None:
    """Frankle & Carbin (2019) prune the output layer at half the rate of the others."""
    net = trace_net()
    asked = {"prune_per_round": 0.2, "scope": "layer", "layers": "all", "rewind": "init"}
    method = started(IMPConfig(rounds=2, layer_rates={"3": 0.1}, **asked), net)
    rounds = run_rounds(method, net, None)
    for before, after in itertools.pairwise(rounds):
        for name, mask in after.items():
            alive = int(before[name].sum())
            rate = 0.1 if name == "3.weight" else 0.2
            assert int(mask.sum()) == alive - int(np.floor(round(rate * alive, 6)))
    with pytest.raises(ValueError, match="methods.imp.layer_rates: 'fc' is no layer here"):
        started(IMPConfig(layer_rates={"fc": 0.1}, **asked), net)
    with pytest.raises(ValidationError, match="needs scope: layer"):
        IMPConfig(layer_rates={"3": 0.1})
    assert "layer_rates" not in IMPConfig().model_dump()


def test_registered_with_working_defaults() -> None:
    spec = method_spec("imp")
    assert isinstance(spec.build(spec.config()), IMP)
