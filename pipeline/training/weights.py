"""Weights of a network somebody already has."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.files import DamagedFileError, file_sha256

HUB = "hf://"
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def located(path: str) -> Path:
    """The file itself; `hf://<owner>/<repository>/<file>` is fetched from the Hugging Face hub."""
    if not path.startswith(HUB):
        return Path(path)
    from huggingface_hub import hf_hub_download

    repository, _, name = path.removeprefix(HUB).rpartition("/")
    return Path(hf_hub_download(repository, name))


def load_weights(
    model: nn.Module, path: Path, sha256: str, prefix: str = "", into: str | None = None
) -> None:
    """Load a state dict into `model`, strictly.

    Args:
        path: safetensors, or a torch checkpoint of tensors (bare, or under "state_dict"/"model").
        sha256: of the file, from params.yaml.
        prefix: stripped from every key that has it, e.g. "module.".
        into: a module of `model` that the weights belong to; the rest of the model stays as it is,
            and what the file has beyond that module (deeper layers, another task's head) is left.

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
    if into is not None:
        model = _part(model, into)
        state = {_renamed(k): v for k, v in state.items()}
        state = {k: v for k, v in state.items() if k in model.state_dict()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit the network: {error}") from error


def _part(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        known = ", ".join(n for n, _ in model.named_children())
        raise ValueError(f"weights.into: no module {name!r} (known: {known})") from error


def _renamed(key: str) -> str:
    """Checkpoints of the first BERTs name scale and shift of a LayerNorm otherwise."""
    for old, new in _OLD_NAMES.items():
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


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
