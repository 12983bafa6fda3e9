"""Every registered method against the contract of `pipeline/training/method.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import registry
from pipeline.data.info import DatasetInfo
from pipeline.files import load_tree, save_tree
from pipeline.selection.select import select
from pipeline.selection.target import Target
from pipeline.training.loop.checkpoint import CheckpointFolder, clone_state, seed_everything
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import FirstEpoch, Job
from pipeline.training.method import Method
from pipeline.training.recipe import OptimizerConfig, Recipe, ScheduleConfig
from pipeline.training.tasks.task import Classification
from pipeline.units.enforce import enforce
from pipeline.units.groups import Granularity, Units
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.training.toy import Recorder, same

METHODS = registry.method_names()
INFO = DatasetInfo("toy", (1, 8, 8), 3)
RECIPE = Recipe(
    epochs=4,
    batch_size=8,
    optimizer=OptimizerConfig(lr=0.05),
    schedule=ScheduleConfig(milestones=(3,)),
    rewind_epoch=1,
)


class Batches:
    """Three batches of 8 images per epoch, which depend only on (epoch, step)."""

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        for step in range(start_step, 3):
            g = torch.Generator().manual_seed(97 * epoch + step)
            x = torch.randn(8, 1, 8, 8, generator=g)
            yield x, torch.randint(0, 3, (8,), generator=g)


class Stopped(BaseException):
    """Stands for the end of the process."""


class StopBefore(Batches):
    """Batches that end the process before an epoch."""

    def __init__(self, epoch: int) -> None:
        self.stop = epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        for step, batch in enumerate(super().epoch(epoch, start_step)):
            if epoch == self.stop and step == 1:
                raise Stopped
            yield batch


class EightSteps:
    """Eight batches of 8 images per epoch, the last one of `last_size`. Ends the process before
    step `last` of the training."""

    def __init__(self, last: int = 10**9, last_size: int = 8, dtype: Any = torch.float32) -> None:
        self.left, self.last_size, self.dtype = last, last_size, dtype

    def __len__(self) -> int:
        return 8

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        for step in range(start_step, 8):
            if self.left == 0:
                raise Stopped
            self.left -= 1
            g = torch.Generator().manual_seed(97 * epoch + step)
            count = self.last_size if step == 7 else 8
            x = torch.randn(count, 1, 8, 8, generator=g, dtype=self.dtype)
            yield x, torch.randint(0, 3, (count,), generator=g)


def network() -> tuple[nn.Module, Units]:
    torch.manual_seed(0)
    model = registry.build_model("small", "resnet8", INFO, {"width": 4})
    return model, trace_units(model, torch.randn(1, 1, 8, 8), ("linear",))


def build(name: str) -> Method:
    spec = registry.method_spec(name)
    return spec.build(spec.config())


def make_job(name: str, batches: Batches) -> Job:
    seed_everything(0)
    model, units = network()
    return Job(
        model=model,
        units=units,
        method=build(name),
        task=Classification(3),
        recipe=RECIPE,
        train=batches,
        validation=list(Batches().epoch(1000)),
        seed=0,
        device=torch.device("cpu"),
        fresh=lambda _: clone_state(network()[0]),
    )


def run(name: str, folder: Path, batches: Batches | None = None) -> Job:
    made = make_job(name, batches or Batches())
    fit(made, CheckpointFolder(folder, name), Recorder())
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    return {name: run(name, tmp_path_factory.mktemp(name)) for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_name_file_and_config_agree(name: str) -> None:
    spec = registry.method_spec(name)
    assert spec.name == name
    assert spec.build.__module__.startswith(f"methods.{name}.")
    assert spec.config()  # every setting has a default
    assert all(f.default is not None or f.annotation for f in spec.config.model_fields.values())
    assert Path(f"docs/methods/{name}.md").is_file()


@pytest.mark.parametrize("name", METHODS)
def test_saliency_covers_units_it_names(name: str, trained: dict[str, Job]) -> None:
    made = trained[name]
    scores = made.method.saliency(made.model, made.units)
    structured = made.method.granularity is Granularity.STRUCTURED
    groups = {g.name: (g.size,) for g in made.units.prunable}
    state = made.model.state_dict()
    shapes = groups if structured else {n: tuple(state[n].shape) for n in made.units.weights}
    assert scores
    for key, score in scores.items():
        assert tuple(score.shape) == shapes[key]
        assert torch.isfinite(score).all()
        assert (score >= 0).all()
    assert any(score.any() for score in scores.values())


@pytest.mark.parametrize("name", METHODS)
def test_resume_in_every_epoch_ends_with_the_same_bits(
    name: str, trained: dict[str, Job], tmp_path: Path
) -> None:
    made = trained[name]
    epochs = sum(p.epochs for p in made.method.phases(RECIPE))
    for epoch in range(1, epochs, max(1, epochs // 4)):
        folder = tmp_path / str(epoch)
        with pytest.raises(Stopped):
            run(name, folder, StopBefore(epoch))
        again = run(name, folder)
        assert same(again.model, made.model), f"resumed in epoch {epoch}"
        one, other = (j.method.saliency(j.model, j.units) for j in (again, made))
        assert all(torch.equal(one[k], other[k]) for k in other)


@pytest.mark.parametrize("name", METHODS)
def test_state_survives_a_file_and_rebuilds_the_saliency(
    name: str, trained: dict[str, Job], tmp_path: Path
) -> None:
    made = trained[name]
    save_tree(tmp_path / "state", made.method.state_dict())
    other, (model, units) = build(name), network()
    other.prepare(model, units, FirstEpoch(Batches(), made.task))
    other.load_state_dict(load_tree(tmp_path / "state"))
    one, two = (m.saliency(made.model, made.units) for m in (made.method, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("name", METHODS)
def test_the_state_after_any_epoch_can_be_ranked(name: str, tmp_path: Path) -> None:
    """Like the stage: every snapshot in turn, loaded into the objects of the finished training."""
    made = make_job(name, Batches())
    recipe = RECIPE.model_copy(update={"keep_epochs": (1, 2, 4), "keep_best": True})
    folder = CheckpointFolder(tmp_path, name)
    fit(replace(made, recipe=recipe), folder, Recorder())
    names = [n for n in folder.snapshots() if n.startswith(("epoch-", "best"))]
    assert {"epoch-1", "epoch-2", "epoch-4", "best-1", "best"} <= set(names)
    wanted = made.method.saliency(made.model, made.units)
    for kept in names:
        tree = load_tree(folder.snapshots()[kept])
        made.model.load_state_dict(tree["model"])
        made.method.load_state_dict(tree["method"])
        scores = made.method.saliency(made.model, made.units)
        assert {k: s.shape for k, s in scores.items()} == {k: s.shape for k, s in wanted.items()}
        assert all(torch.isfinite(s).all() and (s >= 0).all() for s in scores.values()), kept


@pytest.mark.parametrize("name", METHODS)
def test_release_leaves_a_plain_model(name: str, tmp_path: Path) -> None:
    made = run(name, tmp_path)
    plain, _ = network()
    weights = clone_state(made.model)
    made.method.release(made.model)
    assert made.model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(v, weights[k]) for k, v in made.model.state_dict().items())
    for module in made.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    wanted = [p.requires_grad for p in plain.parameters()]
    assert [p.requires_grad for p in made.model.parameters()] == wanted


@pytest.mark.parametrize("name", METHODS)
def test_selection_meets_the_target_and_the_laws_hold(name: str, trained: dict[str, Job]) -> None:
    made = trained[name]
    saliency = made.method.saliency(made.model, made.units)
    granularity = made.method.granularity
    plan = select(saliency, granularity, Target(rule="fraction", value=0.5), None)
    assert abs(plan.kept - plan.total / 2) <= len(saliency)
    if granularity is Granularity.UNSTRUCTURED:
        return
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    masked, shrunk = network()[0], network()[0]
    for model in (masked, shrunk):
        model.load_state_dict(made.model.state_dict())
        model.eval()
    enforce(plan, masked, made.units)
    shrink(plan, shrunk, made.units)
    with torch.no_grad():
        a, b = masked(x), shrunk(x)
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()
    assert sum(p.numel() for p in shrunk.parameters()) < sum(p.numel() for p in masked.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_the_training_decides_the_result_alone(
    name: str, trained: dict[str, Job], tmp_path: Path
) -> None:
    torch.manual_seed(123)  # the state of the global generator must not matter
    torch.randn(7)
    assert same(run(name, tmp_path).model, trained[name].model)


def test_a_twice_registered_name_is_an_error() -> None:
    spec = registry.method_spec(METHODS[0])
    with pytest.raises(ValueError, match="registered twice"):
        registry.register_method(METHODS[0], spec.config)(object)
    assert replace(spec) == spec
