"""`finetune.deliver`: files for other programs, each compared with the network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.data.info import DatasetInfo
from pipeline.study.params.schema import FinetuneDefaults, FinetuneParams
from pipeline.study.records import delivered
from pipeline.study.records.artifacts import DELIVERED, NetworkSpec
from pipeline.study.records.delivered import NEEDED, require_forms, write_forms
from pipeline.units.surgery import shrink
from tests.pipeline.units.laws import random_plan, relative

NETWORK = NetworkSpec("small", "vgg_small", {"width": 4}, DatasetInfo("toy", (3, 16, 16), 5))


@pytest.fixture(scope="module")
def pruned() -> nn.Module:
    torch.manual_seed(0)
    model = NETWORK.build().eval()
    units = NETWORK.units(model)
    shrink(random_plan(units, 0.5, torch.Generator().manual_seed(0)), model, units)
    return model


def test_a_program_of_any_number_of_examples(pruned: nn.Module, tmp_path: Path) -> None:
    found = write_forms(pruned.train(), NETWORK, ("program",), tmp_path)
    assert found.keys() == {"program"}
    assert found["program"] < 1e-5
    assert pruned.training
    program = torch.export.load(tmp_path / DELIVERED / "model.pt2").module()
    for batch in (2, 5):
        images = NETWORK.example(batch)
        with torch.no_grad():
            assert relative([pruned.eval()(images)], [program(images)]) < 1e-5


def test_an_onnx_file(pruned: nn.Module, tmp_path: Path) -> None:
    for package in NEEDED:
        pytest.importorskip(package, reason="pip install -e .[onnx]")
    found = write_forms(pruned, NETWORK, ("onnx",), tmp_path)
    assert found["onnx"] < 1e-4
    assert [p.name for p in (tmp_path / DELIVERED).iterdir()] == ["model.onnx"]


def test_nothing_is_written_unasked(pruned: nn.Module, tmp_path: Path) -> None:
    assert write_forms(pruned, NETWORK, (), tmp_path) == {}
    assert not list(tmp_path.iterdir())
    assert "deliver" not in FinetuneParams().model_dump()
    assert "deliver" not in FinetuneDefaults().model_dump()


def test_what_cannot_be_had_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"finetune.deliver: small/vgg_small has no folder"):
        require_forms(("program", "folder"), NETWORK)
    find = importlib.util.find_spec
    gone = lambda name: None if name == "onnxruntime" else find("json")  # noqa: E731
    monkeypatch.setattr(delivered.importlib.util, "find_spec", gone)
    with pytest.raises(ValueError, match=r"onnx needs onnxruntime: pip install -e .\[onnx\]"):
        require_forms(("onnx",), NETWORK)
    require_forms(("program",), NETWORK)
