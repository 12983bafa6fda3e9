"""Weights of a network somebody already has."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.files import DamagedFileError, file_sha256


def load_weights(model: nn.Module, path: Path, sha256: str, prefix: str = "") -> None:
    """Load a state dict into `model`, strictly.

    Args:
        path: safetensors, or a torch checkpoint of tensors (bare, or under "state_dict"/"model").
        sha256: of the file, from params.yaml.
        prefix: stripped from every key that has it, e.g. "module.".

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: another checksum, or not a plain checkpoint.
        ValueError: keys or shapes do not fit the network; lists them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file (trainings.<name>.weights.path)")
    if (found := file_sha256(path)) != sha256:
        raise DamagedFileError(
            f"{path}: its sha256 is {found}, params.yaml says {sha256}: another or a damaged file"
        )
    state = {k.removeprefix(prefix): v for k, v in _read(path).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit the network: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DamagedFileError(f"{path}: not a checkpoint of plain tensors ({error})") from error
    for key in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict) or not all(isinstance(v, Tensor) for v in tree.values()):
        raise DamagedFileError(f"{path}: holds no state dict of tensors")
    return tree
