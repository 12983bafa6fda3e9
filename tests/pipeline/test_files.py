"""Files are whole or absent, and damage is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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
