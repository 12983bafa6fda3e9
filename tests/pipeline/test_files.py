"""Files are whole or absent, and damage is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.files import (
    DamagedFileError,
    load_tree,
    read_json,
    replacing,
    save_tree,
    tensors_sha256,
    write_json,
)

leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    leaf,
    lambda below: (
        st.lists(below, max_size=3)
        | st.tuples(below, below)
        | st.dictionaries(st.text(), below, max_size=3)
        | st.dictionaries(st.integers(), below, max_size=3)
    ),
    max_leaves=8,
)


@given(trees)
@settings(max_examples=50, deadline=None)
def test_trees_survive(tree: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        save_tree(path, tree)
        assert load_tree(path) == tree


def test_tensors_survive_bit_for_bit_and_alone(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    tree = {
        "tied": [shared, shared.t(), shared[1]],
        "empty": torch.zeros(0, 2),
        "bits": torch.tensor([True, False]),
        "zero-dim": torch.tensor(2.5, dtype=torch.bfloat16),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "betas": (0.9, 0.99)},
    }
    save_tree(tmp_path / "x", tree)
    read = load_tree(tmp_path / "x")
    assert torch.equal(read["tied"][1], shared.t())
    assert torch.equal(read["tied"][2], shared[1])
    assert read["empty"].shape == (0, 2)
    assert read["zero-dim"].dtype == torch.bfloat16
    assert read["optimizer"]["betas"] == (0.9, 0.99)
    assert read["optimizer"]["state"][0]["step"] == 1.0


def test_equal_trees_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_tree(tmp_path / name, {"w": torch.arange(5), "n": {"x": 1, "y": [2.5]}})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("position", [20, -3])
def test_one_flipped_byte_is_noticed(tmp_path: Path, position: int) -> None:
    path = tmp_path / "x"
    save_tree(path, {"w": torch.arange(100.0)})
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match=str(path)):
        load_tree(path)


def test_a_file_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, newer = tmp_path / "last.safetensors", tmp_path / "newer.safetensors"
    save_tree(path, {"epoch": 1, "weight": torch.zeros(3)})
    save_tree(newer, {"epoch": 2, "weight": torch.ones(3)})
    opened = safetensors.safe_open

    def replaced_after_the_header(*given: Any, **more: Any) -> Any:
        if newer.exists():
            file = opened(*given, **more)  # its header is read here, its tensors later, by name
            newer.replace(path)
            return _Mixed(file, opened(*given, **more))
        return opened(*given, **more)

    monkeypatch.setattr(safetensors, "safe_open", replaced_after_the_header)
    tree = load_tree(path)
    assert tree["epoch"] == 2
    assert torch.equal(tree["weight"], torch.ones(3))


class _Mixed:
    """The header of one file and the tensors of another."""

    def __init__(self, header: Any, tensors: Any) -> None:
        self.metadata, self.keys, self.get_tensor = (
            header.metadata,
            header.keys,
            tensors.get_tensor,
        )

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def test_what_is_not_plain_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/a/0"):
        save_tree(tmp_path / "x", {"a": [object()]})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_json_is_canonical_and_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"b": 1, "a": 0.1})
    assert (tmp_path / "x").read_text() == '{\n  "a": 0.1,\n  "b": 1\n}\n'
    with pytest.raises(ValueError):
        write_json(tmp_path / "x", {"a": float("nan")})
    (tmp_path / "x").write_text("{")
    with pytest.raises(DamagedFileError, match="not valid JSON"):
        read_json(tmp_path / "x")


def test_hash_sees_names_shapes_types_and_values() -> None:
    base = {"a": torch.zeros(4)}
    others = [{"b": torch.zeros(4)}, {"a": torch.zeros(2, 2)}, {"a": torch.zeros(4).int()}]
    others.append({"a": torch.tensor([0.0, 0, 0, 1])})
    hashes = {tensors_sha256(t) for t in [base, *others]}
    assert len(hashes) == 5


SMALL_TENSORS = {
    "one element, stride 2": torch.arange(2.0)[::2],
    "negative view": torch._neg_view(torch.ones(3)),
    "conjugate view": torch.ones(2, dtype=torch.complex64).conj(),
    "expanded": torch.ones(1).expand(3),
}


@pytest.mark.parametrize("name", SMALL_TENSORS)
def test_any_view_is_saved_and_hashed_as_the_numbers_it_shows(tmp_path: Path, name: str) -> None:
    tensor = SMALL_TENSORS[name]
    save_tree(tmp_path / "x", {"w": tensor})
    read = load_tree(tmp_path / "x")["w"]
    assert read.tolist() == tensor.tolist()
    assert tensors_sha256({"w": tensor}) == tensors_sha256({"w": read})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(2).to_sparse(),
        torch.zeros(2, dtype=torch.complex128),
        torch.empty(2, device="meta"),
    ],
    ids=["sparse", "complex128", "meta"],
)
def test_a_tensor_that_cannot_be_saved_is_named(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="/a/w"):
        save_tree(tmp_path / "x", {"a": {"w": tensor}})
    assert not list(tmp_path.iterdir())


def test_a_sparse_tensor_has_no_hash() -> None:
    with pytest.raises(TypeError, match="w: a sparse_coo tensor"):
        tensors_sha256({"w": torch.eye(2).to_sparse()})


@pytest.mark.parametrize("form", ["tree", "json"])
def test_a_full_disk_is_named_and_the_old_file_stands(small_disk: Path, form: str) -> None:
    path, save = small_disk / "x", {"tree": save_tree, "json": write_json}[form]
    save(path, {"w": [1.0]})
    before = path.read_bytes()
    big: Any = torch.zeros(100_000) if form == "tree" else [0.0] * 100_000
    with pytest.raises(OSError, match=rf"{path}: the disk is full \(\d+\.\d MB free\)"):
        save(path, {"w": big})
    assert path.read_bytes() == before
    assert [p.name for p in small_disk.iterdir()] == ["x"]
