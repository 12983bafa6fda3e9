"""Jobs of the processes in `test_distributed.py`: small trainings in double precision on augmented
batches, which the code under test divides into parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.augment import Transform
from pipeline.data.batches import WHOLE, Part, Placement
from pipeline.data.config import Flip, PadCrop
from pipeline.data.loaders import TrainBatches
from pipeline.data.splits import TensorSplit
from pipeline.files import save_tree, write_json
from pipeline.training.loop.checkpoint import CheckpointFolder, clone_state
from pipeline.training.loop.distributed import Team, TeamError
from pipeline.training.loop.fit import fit
from pipeline.training.loop.job import Job, Silent
from pipeline.training.method import Method, MethodBase
from pipeline.training.phases import EpochStats, Phase, StepContext
from pipeline.training.recipe import OptimizerConfig, Recipe, ScheduleConfig
from pipeline.training.tasks.task import Classification
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan

RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    optimizer=OptimizerConfig(lr=0.1),
    schedule=ScheduleConfig(name="plateau", patience=0),
    clip_norm=0.5,
)
SIZES = (23, 17)  # the last batch has 7 examples: parts of 3 and 4; or 1: the second part is empty
WEIGHT = "2.weight"


def plain() -> nn.Module:
    """Without BatchNorm: the mean gradient of the parts is the gradient of the batch."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def normed() -> nn.Module:
    """With BatchNorm and dropout: everything that differs between processes."""
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.Linear(4 * 36, 8), nn.Dropout(0.3), nn.Linear(8, 3)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head).double()


def batches(n: int = SIZES[0]) -> TrainBatches:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=g)
    split = TensorSplit(images, torch.randint(0, 3, (n,), generator=g))
    transform = Transform((PadCrop(padding=2), Flip()), (8, 8), (0.5,) * 3, (0.25,) * 3)
    placement = Placement(dtype=torch.float64)
    return TrainBatches(split, transform, batch_size=8, seed=3, placement=placement)


class Pulled(MethodBase):
    """A penalty, a learned factor that is no parameter of the model, and a hook on gradients that
    reads the loss."""

    needs_loss = True

    def __init__(self) -> None:
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))

    def prepare(self, model: nn.Module, units: Units, batches: Any = None) -> None:
        model[0].register_forward_hook(lambda _m, _i, output: output * self.factor)

    def optimizer(self, model: nn.Module, phase: Phase, recipe: Recipe) -> Any:
        return torch.optim.SGD([*model.parameters(), self.factor], lr=0.1, momentum=0.9)

    def penalty(self, model: nn.Module) -> Tensor:
        return 0.01 * self.factor.square() + 0.01 * model[0].weight.abs().sum()

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        # Not linear, and scaled by the loss: wrong unless both were averaged before.
        model[0].weight.grad.sign_().mul_(at.loss)

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor.detach().clone()}

    def load_state_dict(self, state: Any) -> None:
        self.factor.data.copy_(state["factor"])


class Unlike(MethodBase):
    """Behaves differently in every process, which the loop must detect."""

    def __init__(self, team: Team, what: str) -> None:
        self.team, self.what = team, what
        self.keep: PruningPlan | None = None

    def end_epoch(self, model: nn.Module, stats: EpochStats) -> bool:
        if self.what == "plan":
            keep = torch.ones(8, 144, dtype=torch.bool)
            keep[0, 0] = self.team.first
            self.keep = PruningPlan(Granularity.UNSTRUCTURED, {WEIGHT: keep})
        return False

    def after_step(self, model: nn.Module, at: StepContext) -> None:
        if self.what == "weights" and not self.team.first:
            with torch.no_grad():
                model[0].weight[0, 0, 0, 0] += 1e-9

    def plan(self) -> PruningPlan | None:
        return self.keep


def job(team: Team, model: nn.Module, method: Method, train: Any, recipe: Recipe = RECIPE) -> Job:
    return Job(
        model=model,
        units=Units((WEIGHT,), ()),
        method=method,
        task=Classification(3),
        recipe=recipe,
        train=train,
        validation=list(batches(12).epoch(9)),
        seed=0,
        device=torch.device("cpu"),
        fresh=lambda _: clone_state(plain()),
        team=team,
    )


def run(made: Job, folder: Path) -> list[dict[str, Any]]:
    checkpoints = CheckpointFolder(folder, "x", writes=made.team.first)
    return fit(made, checkpoints, Silent())


def train_plain(team: Team, folder: Path, method: str, n: int) -> None:
    """Write final weights and curve of a network without BatchNorm to `folder`."""
    made = job(team, plain(), {"base": MethodBase, "pulled": Pulled}[method](), batches(n))
    curve = run(made, folder / f"{method}-{n}")
    leave(made, curve, folder / f"{method}-{n}-of-{team.size}-{team.rank}")


MIXED = RECIPE.model_copy(update={"mixup": 0.4, "label_smoothing": 0.1})
AVERAGED = RECIPE.model_copy(update={"ema_decay": 0.9})
VARIANTS = {
    "mixed": MIXED,
    "mixed-in-pieces": MIXED.model_copy(update={"accumulation": 2}),
    "averaged": AVERAGED,
}


def train_variant(team: Team, folder: Path, name: str, n: int) -> None:
    """The same with another recipe; also writes the average of the weights, if there is one."""
    made = job(team, plain(), MethodBase(), batches(n), VARIANTS[name])
    curve = run(made, folder / f"{name}-{n}")
    leave(made, curve, folder / f"{name}-{n}-of-{team.size}-{team.rank}")


def leave(made: Job, curve: Sequence[Any], where: Path) -> None:
    save_tree(where.with_suffix(".weights"), made.model.state_dict())
    write_json(where.with_suffix(".curve"), list(curve))


class Killed(BaseException):
    """Stands for kill -9 at a chosen moment."""


SYNCED = RECIPE.model_copy(update={"sync_batchnorm": True})


class KillBefore:
    """Batches that end the process before step `step` of the training."""

    def __init__(self, step: int) -> None:
        self.left, self._inner = step, batches()

    def __len__(self) -> int:
        return len(self._inner)

    def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Any]:
        for batch in self._inner.epoch(epoch, start_step, part):
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield batch


class Draws(MethodBase):
    """Draws from torch's global generator in a hook. The numbers are equal in every process,
    whatever dropout drew."""

    def after_step(self, model: nn.Module, at: StepContext) -> None:
        with torch.no_grad():
            model[0].weight.add_(torch.randn_like(model[0].weight), alpha=1e-3)


RESUMED = AVERAGED.model_copy(update={"checkpoint_steps": 2, "mixup": 0.4})


def equals(team: Team, folder: Path) -> None:
    """Trainings that the test repeats in one process."""
    for method in ("base", "pulled"):
        for n in SIZES:
            train_plain(team, folder, method, n)
    for name in VARIANTS:
        for n in SIZES:
            train_variant(team, folder, name, n)


def resumes(team: Team, folder: Path) -> None:
    """One uninterrupted training, and one that is killed and resumed."""
    for name, kills in (("undisturbed", ()), ("killed", (1, 3, 2))):
        for step in kills:
            with pytest.raises(Killed):
                run(job(team, normed(), Draws(), KillBefore(step), RESUMED), folder / name)
        made = job(team, normed(), Draws(), batches(), RESUMED)
        leave(made, run(made, folder / name), folder / f"{name}-{team.rank}")


def differ(team: Team, folder: Path) -> None:
    """Methods that differ between processes are detected."""
    for what in ("plan", "weights"):
        made = job(team, plain(), Unlike(team, what), batches())
        with pytest.raises(TeamError, match=f"same {what} after epoch 0.*compute.processes: 1"):
            run(made, folder / what)
    model = plain()
    model[0].weight.data += 0.0 if team.first else 1e-9
    made = job(team, model, MethodBase(), batches())
    with pytest.raises(TeamError, match="same weights at the start of phase 'train'"):
        run(made, folder / "network")


def diverges(team: Team, folder: Path) -> None:
    """A non-finite loss in one part stops all processes, with one message."""
    from pipeline.training.loop.finite import DivergedError

    class Poisoned(KillBefore):
        def epoch(self, epoch: int, start_step: int = 0, part: Part = WHOLE) -> Iterator[Any]:
            for step, (x, y) in enumerate(self._inner.epoch(epoch, start_step, part)):
                yield (x * float("nan") if step == 1 and not team.first else x), y

    with pytest.raises(DivergedError, match="epoch 0, step 1"):
        run(job(team, plain(), MethodBase(), Poisoned(0)), folder / "diverged")


def too_small(team: Team, folder: Path) -> None:
    """An empty part with a synchronised BatchNorm is an error and does not hang."""
    made = job(team, plain(), MethodBase(), batches(SIZES[1]), SYNCED)
    said = "connection" if team.first else "last batch .* too small for 2 processes"
    with pytest.raises(RuntimeError, match=f"(?i){said}"):
        run(made, folder / "small")


def everything(team: Team, folder: Path) -> None:
    for part in (equals, resumes, differ, diverges, too_small):
        part(team, folder)
