"""Artefacts between stages: a network is a spec, a plan and weights; never a pickled module.

artifacts/train/<training>/      spec.json, <state>/model.safetensors, <state>/saliency.safetensors;
                                 states.json: the SHA-256 of each state's weights
artifacts/prune/<pruning>/       spec.json, plan.safetensors, model.safetensors
artifacts/finetune/<pruning>/    the same, retrained: what is delivered; and delivered/, a folder
                                 in the format of the network's own library, if it has one
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import registry
from pipeline.data.info import DatasetInfo
from pipeline.files import (
    DamagedFileError,
    load_tree,
    read_json,
    save_tree,
    tensors_sha256,
    write_json,
)
from pipeline.study.params.schema import ModelChoice
from pipeline.study.records.record import TrainRecord
from pipeline.study.records.states import KeptState
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units

DELIVERED, STATES = "delivered", "states.json"
_EARLY_STOP = "early-stop.safetensors"


@dataclass(frozen=True)
class NetworkSpec:
    """How to rebuild a network: registry names, width arguments, shape of the data."""

    family: str
    name: str
    args: Mapping[str, Any]
    info: DatasetInfo

    @classmethod
    def of(cls, choice: ModelChoice, info: DatasetInfo) -> NetworkSpec:
        return cls(choice.family, choice.name, choice.args, info)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NetworkSpec:
        info = dict(value["info"])
        info["input_shape"] = tuple(info["input_shape"])
        return cls(value["family"], value["name"], value["args"], DatasetInfo(**info))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def registered(self) -> registry.ModelSpec:
        return registry.model_spec(self.family, self.name)

    def build(self) -> nn.Module:
        """The dense network, with initial weights from torch's current RNG state."""
        return registry.build_model(self.family, self.name, self.info, self.args)

    def example(self, batch: int = 1) -> Tensor:
        """Example inputs; for images noise (batch, C, H, W). Draws nothing from the global RNG."""
        if self.registered.example is not None:
            return self.registered.example(self.info, batch)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.info.input_shape, generator=generator)

    def units(self, model: nn.Module, branches: bool = False) -> Units:
        """The prunable units of `model`, which must be as built, without surgery; with `branches`
        also those of its residual stream, which its registration may ask for."""
        spec = self.registered
        if spec.units is not None:
            return spec.units(model)
        device = next(model.parameters()).device
        branches = branches or spec.branches
        return trace_units(model, self.example().to(device), spec.never_prune, branches=branches)


@dataclass(frozen=True)
class TrainArtifact:
    """A finished training: its spec and its named states ("final", "init", "round-3", ...)."""

    folder: Path

    @property
    def spec(self) -> dict[str, Any]:
        return read_json(self.folder / "spec.json")

    @property
    def network(self) -> NetworkSpec:
        return NetworkSpec.from_json(self.spec["network"])

    @property
    def granularity(self) -> Granularity:
        """Granularity of the units that this training's method scores."""
        return Granularity(self.spec["granularity"])

    def weights(self, state: str) -> dict[str, Tensor]:
        """Weights of a state.

        Raises:
            FileNotFoundError: no such state; lists the known ones.
            DamagedFileError: the file is damaged, or is not what this training left as `state`.
        """
        path = self.folder / state / "model.safetensors"
        if not path.is_file():
            known = ", ".join(
                sorted(p.parent.name for p in self.folder.glob("*/model.safetensors"))
            )
            raise FileNotFoundError(f"{path}: the training has no state {state!r} (known: {known})")
        weights: dict[str, Tensor] = load_tree(path)
        if (self.folder / STATES).is_file() and tensors_sha256(weights) != self._hash_of(state):
            raise DamagedFileError(
                f"{path}: not the weights that this training left as {state!r} ({STATES} lists "
                f"their hash): of another training, or edited. {self._way_out}"
            )
        return weights

    def require(self, record: TrainRecord) -> None:
        """Check that this is what the training of `record` left.

        Raises:
            DamagedFileError: it is of another training or study; names the file.
        """
        path, spec = self.folder / "spec.json", self.spec
        model = f"{spec['network']['family']}/{spec['network']['name']}"
        found = (spec["training"], model, spec["method"], spec["seed"])
        told = (record.training, record.model, record.method, record.seed)
        if found != told:
            raise DamagedFileError(f"{path}: of {found}, its record of {told}. {self._way_out}")
        if tensors_sha256(self.weights("final")) != record.weights_sha:
            raise DamagedFileError(
                f"{self.folder}/final/model.safetensors: not the weights that the record of "
                f"{record.training!r} cites: of another study, or edited. {self._way_out}"
            )

    @property
    def _way_out(self) -> str:
        stage = f"train@{self.folder.name}"
        return f"Run `dvc checkout {self.folder}`, or `dvc repro --force {stage}`"

    def _hash_of(self, state: str) -> str:
        return str(read_json(self.folder / STATES).get(state))

    def saliency(self, state: str) -> dict[str, Tensor]:
        """The method's scores of its units in that state.

        Raises:
            FileNotFoundError: the state has none ("init", "rewind"); says what to do.
        """
        path = self.folder / state / "saliency.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: the method scores trained states only; give the pruning a `saliency` "
                "of its own, e.g. magnitude"
            )
        return load_tree(path)

    def model(self, state: str = "final") -> nn.Module:
        """The dense network with the weights of `state`."""
        model = self.network.build()
        model.load_state_dict(self.weights(state))
        return model

    def write_state(
        self, state: str, weights: Mapping[str, Tensor], saliency: Mapping[str, Tensor] | None
    ) -> None:
        save_tree(self.folder / state / "model.safetensors", dict(weights))
        listed = self.folder / STATES
        known = read_json(listed) if listed.is_file() else {}
        write_json(listed, {**known, state: tensors_sha256(weights)})
        if saliency is not None:
            save_tree(self.folder / state / "saliency.safetensors", dict(saliency))


@dataclass(frozen=True)
class PrunedArtifact:
    """A pruned network on disk. To load it: build, shrink (if structured), load strictly."""

    folder: Path

    @property
    def spec(self) -> dict[str, Any]:
        return read_json(self.folder / "spec.json")

    @property
    def network(self) -> NetworkSpec:
        return NetworkSpec.from_json(self.spec["network"])

    @property
    def plan(self) -> PruningPlan:
        return load_plan(self.folder / "plan.safetensors")

    @property
    def structured(self) -> bool:
        return self.plan.granularity is Granularity.STRUCTURED

    @property
    def weights_sha(self) -> str:
        """SHA-256 of the weights."""
        return tensors_sha256(load_tree(self.folder / "model.safetensors"))

    @property
    def file_bytes(self) -> int:
        """Size of the weights on disk."""
        return (self.folder / "model.safetensors").stat().st_size

    def model(self) -> nn.Module:
        """The pruned network as an ordinary module, smaller when the plan is structured."""
        return rebuild(self.network, self.plan, load_tree(self.folder / "model.safetensors"))

    def early_stop(self) -> tuple[KeptState, nn.Module] | None:
        """The state of the lowest validation loss of the retraining and the network there; None if
        the retraining looked for none."""
        path = self.folder / _EARLY_STOP
        if not path.is_file():
            return None
        tree = load_tree(path)
        row = tree["early_stop"]
        state = KeptState(row["epochs"], row["validation"], row["step"], row["phase_step"])
        return state, rebuild(self.network, self.plan, tree["model"])

    def write_early_stop(self, state: Mapping[str, Any]) -> None:
        """Store the snapshot of the early stop beside the network."""
        found = {"early_stop": state["early_stop"], "model": state["model"]}
        save_tree(self.folder / _EARLY_STOP, found)

    def write(self, spec: Mapping[str, Any], plan: PruningPlan, model: nn.Module) -> None:
        save_plan(self.folder / "plan.safetensors", plan)
        save_tree(self.folder / "model.safetensors", model.state_dict())
        write_json(self.folder / "spec.json", dict(spec))


def rebuild(network: NetworkSpec, plan: PruningPlan, state: Mapping[str, Tensor]) -> nn.Module:
    """Build, shrink, load: the delivered network from spec + plan + weights."""
    model = network.build()
    if plan.granularity is Granularity.STRUCTURED:
        shrink(plan, model, network.units(model))
    model.load_state_dict(dict(state))
    return model


def save_plan(path: Path, plan: PruningPlan) -> None:
    """Masks and granularity in one file."""
    save_tree(path, {"granularity": plan.granularity.value, "keep": dict(plan.keep)})


def load_plan(path: Path) -> PruningPlan:
    """Inverse of `save_plan`."""
    tree = load_tree(path)
    return PruningPlan(Granularity(tree["granularity"]), tree["keep"])
