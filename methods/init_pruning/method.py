"""Pruning at initialisation: the mask is drawn before the first step and never changes.

SNIP (Lee et al., ICLR 2019, arXiv:1810.02340), GraSP (Wang et al., ICLR 2020, arXiv:2002.07376),
SynFlow (Tanaka et al., NeurIPS 2020, arXiv:2006.05467), and the baselines magnitude and random, as
compared by Frankle et al. (ICLR 2021, arXiv:2009.08576). Units: weights. Rule: `zeros`.

By default SynFlow prunes in 100 rounds with exponentially decreasing densities, the other criteria
in one round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.registry import register_method
from pipeline.selection.criteria import (
    Allocation,
    Batch,
    Loss,
    grasp,
    keep_density,
    snip,
    synflow,
)
from pipeline.selection.masks import (
    GradientMask,
    Masks,
    choose_weights,
    masked_magnitude,
)
from pipeline.training.method import Batches, MethodBase
from pipeline.training.phases import Phase, StartFrom, StepContext
from pipeline.training.recipe import Positive, Recipe, Strict
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan

Criterion = Literal["snip", "grasp", "synflow", "magnitude", "random"]


class InitPruningConfig(Strict):
    """What is pruned before training, and how it is chosen.

    The program of SNIP's authors sets `biases` and `another_draw`.

    Attributes:
        criterion: score of a weight: snip |w g|, grasp w (H g), synflow w dR/dw, magnitude |w|, or
            random; the highest are kept.
        sparsity: fraction of the chosen weights removed before training.
        allocation: global ranks all layers together; uniform gives each the same density; erk its
            Erdos-Renyi-kernel density.
        layers: conv prunes convolutions only; all prunes linear layers too.
        ignore: names of layers to leave dense.
        rounds: number of scorings, each removing a part; none = 100 for synflow, 1 otherwise.
        batches: number of training batches that snip and grasp use.
        temperature: divides the logits for grasp, whose authors use 200.
        seed: seed of the random criterion.
        biases: rank the biases of the chosen layers too, and count them in `sparsity`. Zero biases
            score 0 and go first.
        another_draw: train new random weights instead of the scored ones.
    """

    added_later = ("biases", "another_draw")

    criterion: Criterion = "snip"
    sparsity: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    allocation: Allocation = "global"
    layers: Literal["conv", "all"] = "all"
    ignore: tuple[str, ...] = ()
    rounds: Annotated[int, Field(ge=1)] | None = None
    batches: Annotated[int, Field(ge=1)] = 1
    temperature: Positive = 200.0
    seed: int = 0
    biases: bool = False
    another_draw: bool = False

    @model_validator(mode="after")
    def _biases_with_all(self) -> InitPruningConfig:
        if self.biases and self.allocation != "global":
            raise ValueError(
                f"biases: true ranks all parameters together; allocation: {self.allocation} gives "
                "densities to layers of weights"
            )
        return self

    @property
    def steps(self) -> int:
        return self.rounds or (100 if self.criterion == "synflow" else 1)


Score = Callable[[nn.Module], dict[str, Tensor]]


class _Tempered(nn.Module):
    """A network whose logits are divided by `temperature`."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        return logits / self.temperature


def scorer(config: InitPruningConfig, names: Sequence[str], batches: Batches | None) -> Score:
    """The criterion as a function of the model alone.

    Raises:
        ValueError: the criterion needs a training batch and there is none, or its inputs are tokens
            and the criterion is synflow.
    """
    if config.criterion == "magnitude":
        return lambda model: {n: model.get_parameter(n).detach().abs() for n in names}
    if config.criterion == "random":
        return lambda model: _random(model, names, config.seed)
    seen = [] if batches is None else list(islice(batches, config.batches))
    if batches is None or not seen:
        raise ValueError(
            f"methods.init_pruning: criterion: {config.criterion} needs a training batch"
        )
    if config.criterion == "synflow":
        _check_flow(seen[0][0])
        return lambda model: synflow(model, names, seen[0][0])
    if config.criterion == "grasp":
        return lambda model: _grasp(model, names, seen, batches.loss, config.temperature)
    return lambda model: snip(model, names, seen, batches.loss)


def _grasp(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    loss: Loss,
    temperature: float,
) -> dict[str, Tensor]:
    def tempered(probe: nn.Module, batch: Batch) -> Tensor:
        return loss(_Tempered(probe, temperature), batch)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        return grasp(model, names, batches, tempered)


def _check_flow(inputs: Tensor) -> None:
    """
    Raises:
        ValueError: the inputs are tokens.
    """
    if not inputs.is_floating_point():
        raise ValueError(
            "methods.init_pruning: criterion: synflow sends ones through a network of absolute "
            "weights, and tokens are no numbers; nor is there a flow to conserve through LayerNorm "
            "and the softmax of attention. Use snip, grasp or magnitude"
        )


def _random(model: nn.Module, names: Sequence[str], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {n: model.get_parameter(n) for n in names}
    return {n: torch.rand(w.shape, generator=generator).to(w.device) for n, w in weights.items()}


@register_method("init_pruning", InitPruningConfig)
class InitPruning(MethodBase):
    """Draws the mask in `prepare`, then trains with it."""

    granularity = Granularity.UNSTRUCTURED

    def __init__(self, config: InitPruningConfig) -> None:
        self.config = config
        self.parameters: dict[str, nn.Parameter] = {}
        self.keep: dict[str, Tensor] = {}
        self._plan: PruningPlan | None = None

    def phases(self, recipe: Recipe) -> Sequence[Phase]:
        start: StartFrom = "random" if self.config.another_draw else "current"
        return (Phase("train", recipe.epochs, start),)

    def prepare(self, model: nn.Module, units: Units, batches: Batches | None = None) -> None:
        self.parameters = dict(model.named_parameters())
        names = choose_weights(model, units, self.config.layers, self.config.ignore)
        if self.config.biases:
            names = tuple(n for name in names for n in (name, *self._bias_of(name)))
        self._keep(self._draw(model, names, scorer(self.config, names, batches)))

    def _bias_of(self, weight: str) -> tuple[str, ...]:
        """The trained bias beside a weight, if there is one."""
        name = f"{weight.removesuffix('weight')}bias"
        bias = self.parameters.get(name)
        return (name,) if name != weight and bias is not None and bias.requires_grad else ()

    @torch.no_grad()
    def _draw(self, model: nn.Module, names: Sequence[str], score: Score) -> dict[str, Tensor]:
        """Score and mask in n rounds of densities d^(1/n), d^(2/n), ..., d; restore `model`."""
        initial = {name: self.parameters[name].clone() for name in names}
        keep = {name: torch.ones_like(w, dtype=torch.bool) for name, w in initial.items()}
        steps = self.config.steps
        for step in range(1, steps + 1):
            with torch.enable_grad():
                scores = score(model)
            density = (1.0 - self.config.sparsity) ** (step / steps)
            keep = keep_density(scores, keep, density, self.config.allocation)
            for name, mask in keep.items():
                self.parameters[name].mul_(mask)
        for name, weight in initial.items():
            self.parameters[name].copy_(weight)
        return keep

    def _keep(self, keep: Masks) -> None:
        self.keep = dict(keep)
        self._plan = PruningPlan(self.granularity, self.keep)
        self._gradient_mask = GradientMask(self.parameters, self.keep)

    def after_backward(self, model: nn.Module, at: StepContext) -> None:
        self._gradient_mask.apply()

    def plan(self) -> PruningPlan | None:
        return self._plan

    def saliency(self, model: nn.Module, units: Units) -> dict[str, Tensor]:
        """|w| of kept weights, 0 for removed ones."""
        return masked_magnitude(model, units, self.keep)

    def state_dict(self) -> dict[str, Any]:
        return {"keep": dict(self.keep)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._keep({n: m.to(self.parameters[n].device) for n, m in state["keep"].items()})
