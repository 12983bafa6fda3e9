"""Checkpoints, snapshots and seeds, so that a killed training resumes with the same bits."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.files import DamagedFileError, load_tree, read_json, save_tree, write_json
from pipeline.training.loop import resume

State = dict[str, Tensor]
LINEAGE, FINISHED = "lineage.json", "finished.json"
log = logging.getLogger("espalier")


def clone_state(model: nn.Module) -> State:
    """A copy of the weights and buffers. `state_dict()` alone follows the live weights."""
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (third-party code draws from the global state)
    torch.manual_seed(seed)


def fingerprint(*parts: Any) -> str:
    """SHA-256 of the canonical JSON of `parts`. A checkpoint resumes only if it is unchanged."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def rng_state() -> dict[str, Any]:
    """The state of torch's generators: CPU and, if available, the current GPU."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: Mapping[str, Any]) -> None:
    """Inverse of `rng_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@dataclass(frozen=True)
class Lineage:
    """Trainings with the same `mark` share their first phases; a longer one extends a shorter."""

    mark: str
    phases: int

    def extends(self, path: Path) -> bool:
        """Whether this training extends the finished one whose lineage is in `path`."""
        if not path.is_file():
            return False
        try:
            shorter = Lineage(**read_json(path))
        except (DamagedFileError, TypeError) as error:
            log.warning("%s: damaged (%s): training from the beginning", path, error)
            return False
        return shorter.mark == self.mark and shorter.phases < self.phases


class CheckpointFolder:
    """`.checkpoints/<stage>/<key>/`: the last good checkpoint of one training, and its snapshots.

    The folder is outside every DVC output, because DVC deletes the outputs of a stage before it
    runs. A checkpoint with other inputs is set aside (resume.py), never resumed and never deleted.
    `retire` removes the checkpoint of a finished training, unless a longer training of the same
    `lineage` may start from it.

    Args:
        folder: used by this training only.
        inputs: everything that determines the result, as a tree of plain values by name.
        writes: True in the first process of a training only; the others read.
        lineage: set for a training that further phases may extend.
    """

    def __init__(
        self, folder: Path, inputs: Any, writes: bool = True, lineage: Lineage | None = None
    ) -> None:
        self.folder, self.writes = Path(folder), writes
        if not writes:
            return
        finished = self.folder / FINISHED
        resume.sweep(self.folder)
        if finished.exists() and not (lineage is not None and lineage.extends(finished)):
            shutil.rmtree(self.folder)
        if not finished.exists():
            resume.claim(self.folder, inputs)
        resume.write_inputs(self.folder, inputs)
        if lineage is not None:
            write_json(self.folder / LINEAGE, asdict(lineage))

    @property
    def extended(self) -> bool:
        """Whether the checkpoint is still the end of the shorter training that this one extends."""
        return (self.folder / FINISHED).exists()

    @property
    def last(self) -> Path:
        """The file of the last good checkpoint."""
        return self.folder / resume.LAST

    def save(self, tree: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically.

        Raises:
            OSError: it could not be written; names the file. The previous checkpoint is intact.
        """
        if not self.writes:
            return
        self._write(self.last, {**tree, "snapshots": list(self.snapshots())})
        (self.folder / FINISHED).unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None.

        Raises:
            DamagedFileError: it is damaged, or a snapshot is damaged or missing; names the file
                and the way out.
        """
        if not self.last.exists():
            return None
        tree: dict[str, Any] = self._whole(self.last)
        for name in tree.get("snapshots", ()):
            self._check(self._snapshot(name))
        return tree

    def snapshot(self, name: str, tree: Any) -> None:
        """Write a named state ("init", "rewind", a phase) beside the checkpoint."""
        if self.writes:
            self._write(self._snapshot(name), tree)

    def weights(self, name: str, phase: str) -> State:
        """The weights of a named state, for `phase` to start from.

        Raises:
            ValueError: there is no snapshot of it (yet); says which setting makes one.
        """
        path = self.snapshots().get(name)
        if path is None:
            raise ValueError(
                f"phase {phase!r} starts from {name!r}, but there is no such snapshot: set "
                "train.rewind_epoch (or rewind_step) in params.yaml to one before that phase"
            )
        return dict(load_tree(path)["model"])

    def keep_epoch(self, epochs: int, tree: Any) -> None:
        """Store the state after `epochs` epochs until `name_epochs` or `drop_epochs`."""
        if self.writes:
            self._write(self._epoch(epochs), tree)

    def check_epochs(self, wanted: Collection[int]) -> None:
        """
        Raises:
            DamagedFileError: the state after one of these epochs is missing or damaged.
        """
        for epochs in wanted:
            self._check(self._epoch(epochs))

    def drop_epochs(self, wanted: Collection[int]) -> None:
        """Remove the states of epochs that no name refers to any more. Call it after `save`: the
        previous checkpoint may still refer to them."""
        for path in (self.folder / "epochs").glob("*.safetensors") if self.writes else ():
            if int(path.stem) not in wanted:
                path.unlink()

    def name_epochs(self, names: Mapping[str, int]) -> None:
        """Add the states of epochs to the snapshots under their names."""
        for name, epochs in names.items():
            self.snapshot(name, load_tree(self._epoch(epochs)) if self.writes else None)

    def finish_evaluations(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the scores of `train.evaluate_steps`, if there are any."""
        if rows and self.writes:
            write_json(self.evaluations, list(rows))

    @property
    def evaluations(self) -> Path:
        """The file of the scores of `train.evaluate_steps`."""
        return self.folder / "evaluations.json"

    def _epoch(self, epochs: int) -> Path:
        return self.folder / "epochs" / f"{epochs}.safetensors"

    def _snapshot(self, name: str) -> Path:
        return self.folder / "snapshots" / f"{name}.safetensors"

    @property
    def _way_out(self) -> str:
        return f"delete {self.folder} to train from the beginning"

    def _check(self, path: Path) -> None:
        if not path.is_file():
            raise DamagedFileError(
                f"{path}: missing, and {self.last.name} cannot be resumed without it; restore it, "
                f"or {self._way_out}"
            )
        self._whole(path)

    def _whole(self, path: Path) -> Any:
        try:
            return load_tree(path)
        except DamagedFileError as error:
            raise DamagedFileError(f"{error}; {self._way_out}") from error

    def _write(self, path: Path, tree: Any) -> None:
        try:
            save_tree(path, tree)
        except OSError as error:
            stood = self.last.exists()
            stands = "the previous checkpoint is intact" if stood else "there is no checkpoint yet"
            raise OSError(f"{error}; {stands}: free some space and run again") from error

    def snapshots(self) -> dict[str, Path]:
        """Files of all snapshots so far, by name."""
        return {p.stem: p for p in sorted((self.folder / "snapshots").glob("*.safetensors"))}


def retire(folder: Path) -> None:
    """Remove the checkpoints of a finished training, unless further phases may extend it."""
    resume.remind(folder)
    lineage = folder / LINEAGE
    if lineage.is_file():
        lineage.replace(folder / FINISHED)
    else:
        shutil.rmtree(folder, ignore_errors=True)
