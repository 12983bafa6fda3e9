"""Weights trained elsewhere are complete, finite and named, or refused with a one-line error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.files import DamagedFileError, file_sha256
from pipeline.training.weights import load_weights


def text(path: Path) -> None:
    path.write_text("0.1 0.2 0.3\nweights\n")


def integer_keys(path: Path) -> None:
    torch.save({0: torch.ones(2, 2), 1: torch.ones(2)}, path)


def truncated(path: Path) -> None:
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, path)
    path.write_bytes(path.read_bytes()[:-5])


def list_of_tensors(path: Path) -> None:
    torch.save([torch.ones(2)], path)


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("w.pt", text, "expected a state dict written by torch.save"),
        ("w.pt", integer_keys, "e.g. 0; expected a state dict of tensors by name"),
        ("w.safetensors", truncated, "not a whole safetensors file"),
        ("w.safetensors", text, "not a whole safetensors file"),
        ("w.pt", list_of_tensors, "holds no state dict of tensors, but list"),
    ],
)
def test_a_file_of_another_kind_is_named(
    tmp_path: Path, name: str, make: Callable[[Path], None], told: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(DamagedFileError, match=name) as caught:
        load_weights(nn.Linear(2, 2), path, file_sha256(path))
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (torch.tensor([1.0, float("nan")]), "NaN or infinity"),
        (torch.tensor([1.0, float("inf")], dtype=torch.bfloat16), "NaN or infinity"),
        (torch.ones(2, dtype=torch.complex64), "complex"),
    ],
)
def test_weights_that_are_no_finite_real_numbers_are_refused(
    tmp_path: Path, bad: torch.Tensor, told: str
) -> None:
    path, model = tmp_path / "w.pt", nn.Linear(2, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.save({"weight": torch.ones(2, 2), "bias": bad}, path)
    with pytest.raises(ValueError, match=rf"w\.pt: 'bias' .*{told}"):
        load_weights(model, path, file_sha256(path))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
