"""The loop: order of hooks, snapshots, masks, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.files import load_tree
from pipeline.training.loop.checkpoint import clone_state
from pipeline.training.method import MethodBase
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.units.groups import Granularity
from pipeline.units.plan import PruningPlan
from tests.pipeline.training.toy import (
    RECIPE,
    WEIGHTS,
    KillAt,
    Killed,
    Rounds,
    job,
    network,
    same,
    train,
)


def first_forward_of(model: nn.Module, call: int) -> list[dict[str, Tensor]]:
    """Weights as the `call`-th training forward (0-based) sees them, filled during fit."""
    seen: list[dict[str, Tensor]] = []
    calls = [0]

    def look(module: nn.Module, inputs: Any) -> None:
        if module.training:
            if calls[0] == call:
                seen.append(clone_state(module))
            calls[0] += 1

    model.register_forward_pre_hook(look)
    return seen


def test_a_rewound_model_meets_its_first_batch_masked(tmp_path: Path) -> None:
    made = job(Rounds())
    init = clone_state(made.model)
    seen = first_forward_of(made.model, call=6)
    train(tmp_path, made)
    keep = made.method.plan().keep
    for name in WEIGHTS:
        assert torch.equal(seen[0][name], init[name] * keep[name])
    assert torch.equal(seen[0]["1.running_mean"], init["1.running_mean"])


def test_masks_hold_to_the_end_and_the_level_is_kept(tmp_path: Path) -> None:
    made = job(Rounds("current"))
    model, _, _ = train(tmp_path, made)
    keep = made.method.plan().keep
    for name in WEIGHTS:
        assert not model.state_dict()[name][~keep[name]].any()
        assert model.state_dict()[name][keep[name]].all()
    level = load_tree(tmp_path / "snapshots" / "round-0.safetensors")
    assert set(level) == {"model", "method"}
    assert level["model"][WEIGHTS[0]].all()


@pytest.mark.parametrize("start", ["rewind", "random"])
def test_where_a_phase_starts(tmp_path: Path, start: str) -> None:
    made = job(Rounds(start))
    seen = first_forward_of(made.model, call=6)
    train(tmp_path, made)
    rewind = load_tree(tmp_path / "snapshots" / "rewind.safetensors")["model"]
    wanted = rewind if start == "rewind" else clone_state(network(seed=5))
    keep = made.method.plan().keep
    for name in WEIGHTS:
        assert torch.equal(seen[0][name], wanted[name] * keep[name])


def test_snapshots_do_not_follow_the_weights(tmp_path: Path) -> None:
    made = job()
    init = clone_state(made.model)
    model, _, _ = train(tmp_path, made)
    kept = load_tree(tmp_path / "snapshots" / "init.safetensors")["model"]
    assert all(torch.equal(kept[k], init[k]) for k in init)
    assert not torch.equal(kept[WEIGHTS[0]], model.state_dict()[WEIGHTS[0]])


def test_rewind_snapshot_is_the_state_after_that_epoch(tmp_path: Path) -> None:
    one = job(recipe=RECIPE.model_copy(update={"epochs": 1}))
    train(tmp_path / "one", one)
    train(tmp_path / "four", job())
    kept = load_tree(tmp_path / "four" / "snapshots" / "rewind.safetensors")["model"]
    assert all(torch.equal(kept[k], v) for k, v in one.model.state_dict().items())


@pytest.mark.parametrize("rewind", [{}, {"rewind_epoch": 0, "rewind_step": 4}])
@pytest.mark.parametrize("method", [MethodBase, Rounds, lambda: Rounds("rewind")])
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 6, 7, 9, 10])
def test_resume_is_bit_exact(tmp_path: Path, method: Any, steps: int, rewind: Any) -> None:
    recipe = RECIPE.model_copy(update=rewind)
    undisturbed, wanted, curve = train(tmp_path / "a", job(method(), recipe))
    recipe = recipe.model_copy(update={"checkpoint_steps": 2})
    with pytest.raises(Killed):
        train(tmp_path / "b", job(method(), recipe, train=KillAt(steps)))
    model, seen, resumed = train(tmp_path / "b", job(method(), recipe))
    assert same(model, undisturbed)
    assert resumed == curve
    strip = lambda rows: [{**r[2], "system/epoch_seconds": 0} for r in rows]  # noqa: E731
    assert strip(seen.rows) == strip(wanted.rows)[len(wanted.rows) - len(seen.rows) :]


def test_resume_really_resumes(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, job(train=KillAt(7)))
    counted = KillAt(6)
    train(tmp_path, job(train=counted))
    assert counted.left == 0  # 12 steps, 6 of them in whole epochs before the kill: 6 left


def test_other_params_are_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, job(train=KillAt(7)))
    everything = KillAt(12)
    train(tmp_path, job(train=everything), mark="other params")
    assert everything.left == 0


class Hooks(MethodBase):
    """Records the order in which the loop calls the hooks."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def prepare(self, model: Any, units: Any, batches: Any = None) -> None:
        self.calls.append("prepare")

    def penalty(self, model: nn.Module) -> Tensor | None:
        self.calls.append("penalty")
        return 0.0 * model[0].weight.sum()

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        assert all(p.grad is not None for p in model.parameters())
        self.calls.append("after_backward")

    def after_step(self, model: nn.Module, at: StepContext) -> None:
        self.calls.append(f"after_step {at.step} {at.phase_step} of {at.steps_per_epoch}")

    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        stats.logged["count"] = 3
        self.calls.append(f"end_epoch {stats.epoch}")
        return stats.epoch == 1

    def end_phase(self, model: nn.Module, phase: Phase) -> None:
        self.calls.append(f"end_phase {phase.name}")


def test_hooks_fire_in_the_documented_order_and_end_epoch_may_stop(tmp_path: Path) -> None:
    method = Hooks()
    _, _, curve = train(tmp_path, job(method))
    per_step = ["penalty", "after_backward", "after_step {0} {0} of 3"]
    epochs = [[c.format(3 * e + s) for s in range(3) for c in per_step] for e in range(2)]
    wanted = ["prepare", *epochs[0], "end_epoch 0", *epochs[1], "end_epoch 1", "end_phase train"]
    assert method.calls == wanted
    assert [row["values"]["method/count"] for row in curve] == [3.0, 3.0]


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    made = job(recipe=RECIPE.model_copy(update={"clip_norm": 1e-3, "epochs": 1}))
    norms = []

    class Watch(MethodBase):
        def after_step(self, model: nn.Module, at: StepContext) -> None:
            grads = [p.grad.norm() for p in model.parameters()]
            norms.append(float(torch.stack(grads).norm()))

    train(tmp_path, job(Watch(), made.recipe))
    assert norms
    assert max(norms) <= 1e-3 * 1.001


def test_a_kept_plan_is_enforced_when_the_method_has_none(tmp_path: Path) -> None:
    keep = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    plan = PruningPlan(Granularity.UNSTRUCTURED, {WEIGHTS[0]: keep})
    model, _, _ = train(tmp_path, job(keep=plan))
    assert not model.state_dict()[WEIGHTS[0]][~keep].any()


def test_bf16_and_channels_last_train(tmp_path: Path) -> None:
    _, _, curve = train(tmp_path, job(recipe=RECIPE.model_copy(update={"precision": "bf16"})))
    assert curve[-1]["values"]["train/loss"] < curve[0]["values"]["train/loss"]


def test_the_curve_is_the_mean_of_the_epoch(tmp_path: Path) -> None:
    made = job(recipe=RECIPE.model_copy(update={"epochs": 1}))
    losses: list[float] = []
    inner = made.task.loss

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(made.task, name)

        def loss(self, model: nn.Module, batch: Any) -> Any:
            loss, sums = inner(model, batch)
            losses.append(float(loss.detach()))
            return loss, sums

    _, _, curve = train(tmp_path, job(recipe=made.recipe, task=Spy()))
    assert curve[0]["values"]["train/loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert curve[0]["step"] == 3
