"""Load weights that were trained elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.files import DamagedFileError, file_sha256

HUB = "hf://"
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def located(path: str) -> Path:
    """The local file. `hf://<owner>/<repository>/<file>` is downloaded from Hugging Face."""
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
        prefix: removed from every key that has it, e.g. "module.".
        into: a module of `model` to load into. The rest of the model is unchanged, and what the
            file has beyond that module (deeper layers, another task's head) is ignored.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedFileError: wrong checksum, or not a plain checkpoint.
        ValueError: keys or shapes do not fit the network (lists them), or a tensor is complex or
            not finite.
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
    _check_numbers(path, state)
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
    """Checkpoints of the first BERTs have other names for scale and shift of a LayerNorm."""
    for old, new in _OLD_NAMES.items():
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


def _check_numbers(path: Path, state: dict[str, Tensor]) -> None:
    """
    Raises:
        ValueError: a tensor is complex, NaN or infinite; names it.
    """
    for name, tensor in state.items():
        if tensor.is_complex():
            raise ValueError(f"{path}: {name!r} is complex; weights must be real numbers")
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{path}: {name!r} holds NaN or infinity; export the weights again")


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise DamagedFileError(
                f"{path}: not a whole safetensors file ({error}); expected named tensors"
            ) from error
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling arbitrary bytes can raise any exception
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise DamagedFileError(
            f"{path}: not a checkpoint of plain tensors ({reason[:200]}); expected a state dict "
            "written by torch.save"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict) or not all(isinstance(v, Tensor) for v in tree.values()):
        raise DamagedFileError(f"{path}: holds no state dict of tensors, but {_kind(tree)}")
    if others := [key for key in tree if not isinstance(key, str)]:
        raise DamagedFileError(
            f"{path}: its keys are no names of parameters, e.g. {others[0]!r}; expected a state "
            "dict of tensors by name"
        )
    return tree


def _kind(tree: object) -> str:
    if isinstance(tree, dict):
        key, value = next((k, v) for k, v in tree.items() if not isinstance(v, Tensor))
        return f"{type(value).__name__} under {key!r}"
    return type(tree).__name__
