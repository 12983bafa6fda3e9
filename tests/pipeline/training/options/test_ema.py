"""The average of the weights: its definition, masks, resume, and no effect on training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.files import load_tree
from pipeline.training.loop.checkpoint import CheckpointFolder, clone_state
from pipeline.training.method import MethodBase
from pipeline.training.options.ema import Average, warmed_up
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import Recipe
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from tests.pipeline.training.toy import (
    RECIPE,
    WEIGHTS,
    Batches,
    KillAt,
    Killed,
    Rounds,
    job,
    same,
    train,
)

AVERAGED = RECIPE.model_copy(update={"ema_decay": 0.8})
HALF = PruningPlan(
    Granularity.UNSTRUCTURED,
    {WEIGHTS[0]: torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) > 0.5},
)


class Steps(MethodBase):
    """Remembers the weights before the first step and after every step; `inner` does the work."""

    def __init__(self, inner: MethodBase | None = None) -> None:
        self.inner, self.seen = inner or MethodBase(), list[dict[str, Tensor]]()
        self.begun: dict[int, dict[str, Tensor]] = {}

    def phases(self, recipe: Recipe) -> Any:
        return self.inner.phases(recipe)

    def end_phase(self, model: nn.Module, phase: Phase) -> None:
        self.inner.end_phase(model, phase)

    def plan(self) -> PruningPlan | None:
        return self.inner.plan()

    def after_step(self, model: nn.Module, at: StepContext) -> None:
        self.seen.append(clone_state(model))


def reference(start: dict[str, Tensor], steps: list[dict[str, Tensor]], decay: float) -> Any:
    """The definition, number by number."""
    average = {k: v.double() if v.is_floating_point() else v for k, v in start.items()}
    for t, weights in enumerate(steps):
        d = min(decay, (1 + t) / (10 + t))
        for name, value in weights.items():
            if value.is_floating_point():
                average[name] = d * average[name] + (1 - d) * value.double()
            else:
                average[name] = value
    return average


def ema_of(folder: Path) -> dict[str, Tensor]:
    return load_tree(folder / "snapshots" / "ema.safetensors")["model"]


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name].to(value.dtype), rtol=2e-6, atol=1e-7)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_warm_up_is_tensorflows() -> None:
    assert [warmed_up(0.999, t) for t in (0, 8, 990)] == [0.1, 0.5, 0.991]
    assert warmed_up(0.999, 8990) == 0.999 == warmed_up(0.999, 10**6)
    assert warmed_up(0.05, 0) == 0.05


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.99])
def test_the_average_is_the_definition(tmp_path: Path, decay: float) -> None:
    """Parameters, running statistics (floating) and their counter (an integer, copied)."""
    method = Steps()
    made = job(method, RECIPE.model_copy(update={"ema_decay": decay}))
    start = clone_state(made.model)
    train(tmp_path, made)
    assert len(method.seen) == 12
    found = ema_of(tmp_path)
    assert_close(found, reference(start, method.seen, decay))
    assert found["1.num_batches_tracked"] == 12
    assert not torch.equal(found["1.running_mean"], made.model.state_dict()["1.running_mean"])


def test_a_rewound_phase_begins_a_new_average(tmp_path: Path) -> None:
    method = Steps(Rounds("init"))
    made = job(method, AVERAGED)
    start = clone_state(made.model)
    train(tmp_path, made)
    keep = method.inner.keep.keep
    start |= {name: start[name] * keep[name] for name in keep}
    wanted = reference(start, method.seen[6:], 0.8)
    wanted |= {name: wanted[name] * keep[name] for name in keep}
    assert_close(ema_of(tmp_path), wanted)


@pytest.mark.parametrize("start", ["current", "init"])
def test_a_masked_weight_is_zero_in_the_average(tmp_path: Path, start: str) -> None:
    """Even if it was not zero in earlier rounds."""
    made = job(Rounds(start), AVERAGED)
    train(tmp_path, made)
    found = ema_of(tmp_path)
    for name, keep in made.method.plan().keep.items():
        assert not found[name][~keep].any()
        assert found[name][keep].all()


def test_the_mask_of_a_retraining_holds_in_the_average(tmp_path: Path) -> None:
    train(tmp_path, job(recipe=AVERAGED, keep=HALF))
    found = ema_of(tmp_path)[WEIGHTS[0]]
    assert not found[~HALF.keep[WEIGHTS[0]]].any()
    assert found[HALF.keep[WEIGHTS[0]]].all()


@pytest.mark.parametrize("method", [MethodBase, Rounds, lambda: Rounds("rewind")])
@pytest.mark.parametrize("steps", [0, 1, 3, 5, 6, 7, 9, 10])
def test_a_killed_training_averages_the_same_bits(tmp_path: Path, method: Any, steps: int) -> None:
    """Checkpoints inside and at the end of epochs, in both phases."""
    _, _, curve = train(tmp_path / "whole", job(method(), AVERAGED))
    recipe = AVERAGED.model_copy(update={"checkpoint_steps": 2})
    with pytest.raises(Killed):
        train(tmp_path / "cut", job(method(), recipe, train=KillAt(steps)))
    assert train(tmp_path / "cut", job(method(), recipe))[2] == curve
    assert equal(ema_of(tmp_path / "cut"), ema_of(tmp_path / "whole"))


def test_killed_before_it_is_kept_it_is_kept_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", job(recipe=AVERAGED))
    kept = CheckpointFolder.snapshot

    def dies(self: CheckpointFolder, name: str, tree: Any) -> None:
        if name == "ema":
            raise Killed
        kept(self, name, tree)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "snapshot", dies)
        with pytest.raises(Killed):
            train(tmp_path / "cut", job(recipe=AVERAGED))
    train(tmp_path / "cut", job(recipe=AVERAGED))
    assert equal(ema_of(tmp_path / "cut"), ema_of(tmp_path / "whole"))


def test_it_is_scored_and_changes_nothing_of_the_training(tmp_path: Path) -> None:
    plain, _, curve = train(tmp_path / "plain", job())
    made = job(recipe=AVERAGED)
    model, _, averaged = train(tmp_path / "averaged", made)
    assert same(plain, model)
    scores = [k for k in averaged[0]["values"] if k.startswith("ema/")]
    assert scores == ["ema/loss", "ema/top1"]
    model.load_state_dict(ema_of(tmp_path / "averaged"))
    last = made.task.scores(model, made.validation)
    assert {k: averaged[-1]["values"][f"ema/{k}"] for k in last} == last
    assert averaged[-1]["values"]["ema/loss"] != averaged[-1]["values"]["validation/loss"]
    for row in averaged:
        row["values"] = {k: v for k, v in row["values"].items() if k not in scores}
    assert averaged == curve
    saved = [CheckpointFolder(tmp_path / n, "x").load() for n in ("plain", "averaged")]
    assert saved[1].keys() - saved[0].keys() == {"ema"}
    assert "ema" not in CheckpointFolder(tmp_path / "plain", "x").snapshots()


def test_a_method_may_log_beside_it(tmp_path: Path) -> None:
    class Logs(MethodBase):
        def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
            stats.logged["own"] = 1.0
            return False

    values = train(tmp_path, job(Logs(), AVERAGED))[2][0]["values"]
    assert {"method/own", "ema/top1"} <= values.keys()


def test_a_tied_weight_moves_once_and_no_gradient_is_kept() -> None:
    one, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    other.weight = one.weight
    model = nn.Sequential(one, other)
    before = one.weight.detach().clone()
    average = Average(model, 0.5)
    with torch.no_grad():
        one.weight.add_(1.0)
    average.update()
    for key in ("0.weight", "1.weight"):
        torch.testing.assert_close(average.model.state_dict()[key], before + 0.9)
    assert not any(p.requires_grad for p in average.model.parameters())
    assert one.weight.requires_grad


def test_hooks_of_the_method_act_on_the_average_too(tmp_path: Path) -> None:
    """A learned factor of a hook is not a weight; the average is scored with its current value."""

    class Scaled(MethodBase):
        def prepare(self, model: nn.Module, units: Any, batches: Any = None) -> None:
            self.factor = torch.zeros(())
            model[4].register_forward_hook(lambda _m, _i, output: output * self.factor)

    recipe = AVERAGED.model_copy(update={"epochs": 1})
    values = train(tmp_path, job(Scaled(), recipe))[2][0]["values"]
    assert values["ema/loss"] == pytest.approx(float(torch.tensor(3.0).log()))


def test_without_a_step_the_average_is_where_it_began(tmp_path: Path) -> None:
    made = job(recipe=AVERAGED.model_copy(update={"epochs": 0}), train=Batches())
    start = clone_state(made.model)
    train(tmp_path, made)
    assert equal(ema_of(tmp_path), start)


def test_part_of_the_recipe_but_absent_while_off() -> None:
    assert "ema_decay" not in RECIPE.model_dump(mode="json")
    assert AVERAGED.model_dump(mode="json")["ema_decay"] == 0.8
    for wrong in (1.0, -0.1):
        with pytest.raises(ValueError, match="ema_decay"):
            Recipe(epochs=1, ema_decay=wrong)
