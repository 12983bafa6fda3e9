"""Optimizers and learning-rate schedules, built from a recipe."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn
from torch.optim import SGD, Adadelta, Adam, AdamW, Optimizer
from torch.optim import lr_scheduler as torch_schedules

from pipeline.training.phases import EpochStats
from pipeline.training.recipe import OptimizerConfig, Recipe, ScheduleConfig


class Schedule(Protocol):
    """A learning-rate schedule. `step` is called at the end of every epoch, `within` before every
    step with the fraction of the epoch that is done."""

    def step(self, stats: EpochStats) -> None: ...
    def within(self, progress: float) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class EpochSchedule:
    """Learning rate as a pure function of the epoch: `lr = base * factor(epoch)`.

    Args:
        optimizer: the `lr` of its param groups at construction are the base rates.
        config: the schedule; any name but "plateau".
        epochs: length of the whole schedule, the horizon of "cosine".
        start_epoch: epoch of the schedule that the first training epoch uses.
    """

    def __init__(
        self, optimizer: Optimizer, config: ScheduleConfig, epochs: int, start_epoch: int = 0
    ) -> None:
        self.optimizer = optimizer
        self.config = config
        self.epochs = epochs
        self.epoch = start_epoch
        self.base = [float(group["lr"]) for group in optimizer.param_groups]
        self._apply()

    def _apply(self, progress: float = 0.0) -> None:
        for base, group in zip(self.base, self.optimizer.param_groups, strict=True):
            if self.config.name == "linear":
                done = (self.epoch + progress) / max(self.epochs, 1)
                group["lr"] = linear_rate(self.config, base, done)
            else:
                group["lr"] = learning_rate(self.config, base, self.epoch, self.epochs)

    def step(self, stats: EpochStats) -> None:
        del stats
        self.epoch += 1
        self._apply()

    def within(self, progress: float) -> None:
        if self.config.name == "linear":
            self._apply(progress)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "base": self.base}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.base = int(state["epoch"]), list(state["base"])
        self._apply()


def learning_rate(config: ScheduleConfig, base: float, epoch: int, epochs: int) -> float:
    """Learning rate in force during 0-based `epoch` of a schedule of `epochs` epochs.

    With `lr_warmup` = w the first w epochs run at base * 1/(w+1), 2/(w+1), ...; the milestones and
    the cosine keep counting from epoch 0.
    """
    if epoch < config.lr_warmup:
        return base * (epoch + 1) / (config.lr_warmup + 1)
    if config.name == "step":
        return float(base * config.gamma ** (epoch // config.step_size))
    if config.name == "multistep":
        return float(base * config.gamma ** sum(epoch >= m for m in config.milestones))
    if config.name == "cosine":
        return _cosine(base, config.min_lr, min(epoch / max(epochs, 1), 1.0))
    if config.name == "warm_restarts":
        period = config.period
        while epoch >= period:
            epoch, period = epoch - period, period * config.period_factor
        return _cosine(base, config.min_lr, epoch / period)
    if config.name == "cyclic":
        at = epoch % (config.step_up + config.step_down)
        up = at / config.step_up
        down = 1.0 - (at - config.step_up) / config.step_down
        return config.min_lr + (base - config.min_lr) * (up if at <= config.step_up else down)
    return base


def linear_rate(config: ScheduleConfig, base: float, done: float) -> float:
    """Learning rate after the fraction `done` of all steps."""
    warmup = config.warmup_fraction
    if done < warmup:
        return base * done / warmup
    left = max(0.0, (1.0 - done) / (1.0 - warmup))
    return config.min_lr + (base - config.min_lr) * left


def _cosine(base: float, floor: float, progress: float) -> float:
    return floor + (base - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


class PlateauSchedule:
    """Torch's ReduceLROnPlateau on the validation loss, or the training loss if there is no
    validation split."""

    def __init__(self, optimizer: Optimizer, config: ScheduleConfig) -> None:
        self._inner = torch_schedules.ReduceLROnPlateau(
            optimizer, factor=config.gamma, patience=config.patience, min_lr=config.min_lr
        )

    def step(self, stats: EpochStats) -> None:
        loss = stats.validation.get("loss", stats.train["loss"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self._inner.step(loss)

    def within(self, progress: float) -> None:
        """Does nothing: the rate changes between epochs only."""

    def state_dict(self) -> dict[str, Any]:
        keys = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        return {k: getattr(self._inner, k) for k in keys}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for key, value in state.items():
            setattr(self._inner, key, value)


def make_schedule(optimizer: Optimizer, recipe: Recipe, start_epoch: int = 0) -> Schedule:
    """The recipe's schedule over the recipe's epochs, starting at `start_epoch`."""
    if recipe.schedule.name == "plateau":
        return PlateauSchedule(optimizer, recipe.schedule)
    return EpochSchedule(optimizer, recipe.schedule, recipe.epochs, start_epoch)


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer over all parameters that require a gradient."""
    return optimizer_over(parameter_groups(model, recipe.optimizer), recipe.optimizer)


def optimizer_over(params: Any, config: OptimizerConfig) -> Optimizer:
    """The torch optimizer of `config` over parameters or parameter groups."""
    lr, decay = config.lr, config.weight_decay
    how = {"fused": True} if config.fused else {"foreach": True}
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return SGD(params, lr, config.momentum, weight_decay=decay, nesterov=nesterov, **how)
    if config.name == "adam":
        return Adam(params, lr, betas=config.betas, weight_decay=decay, **how)
    if config.name == "adamw":
        return AdamW(params, lr, betas=config.betas, weight_decay=decay, **how)
    return Adadelta(params, lr, weight_decay=decay, foreach=True)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """One group, or two if norm, bias and depthwise parameters have no weight decay."""
    live = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if config.decay_norm_and_bias:
        return [{"params": [p for _, p in live]}]
    depthwise = {
        f"{name}.weight"
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and m.groups == m.in_channels and m.groups > 1
    }
    spared = [p for n, p in live if p.ndim < 2 or n in depthwise]
    decayed = [p for n, p in live if p.ndim >= 2 and n not in depthwise]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]
