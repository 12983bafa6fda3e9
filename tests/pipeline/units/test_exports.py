"""A pruned ViT and a pruned Llama as torch.export programs and ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from pipeline.units import exports
from pipeline.units.exports import save_onnx, save_program
from pipeline.units.heads import with_open_heads
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.laws import random_plan

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
WORDS = {"input_ids": torch.arange(6)[None] + 3, "use_cache": False}


def vit() -> nn.Module:
    return with_open_heads(VisionTransformer(16, 8, 2, 4, 16, 24, num_classes=5))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 31}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, pad_token_id=0))  # type: ignore[no-any-return]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "vit": (vit, IMAGE),
    "llama": (llama, WORDS),
}


@pytest.fixture(scope="module", params=NETWORKS)
def pruned(request: pytest.FixtureRequest) -> tuple[nn.Module, Any]:
    build, example = NETWORKS[request.param]
    torch.manual_seed(0)
    model = build().eval()
    units = trace_units(model, example)
    before = sum(p.numel() for p in model.parameters())
    shrink(random_plan(units, 0.5, torch.Generator().manual_seed(0)), model, units)
    assert sum(p.numel() for p in model.parameters()) < 0.8 * before
    return model, example


def test_a_program_takes_any_number_of_examples(
    pruned: tuple[nn.Module, Any], tmp_path: Path
) -> None:
    model, example = pruned
    assert save_program(model, example, tmp_path / "slim.pt2") < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ["slim.pt2"]


def test_onnx(pruned: tuple[nn.Module, Any], tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="pip install -e .[onnx]")
    model, example = pruned
    assert save_onnx(model, example, tmp_path / "slim.onnx") < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["slim.onnx"]


def test_a_file_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.export.load

    class Other(nn.Module):
        def module(self) -> Any:
            return lambda x: x + 1.0

    monkeypatch.setattr(torch.export, "load", lambda file: load(file) and Other())
    assert exports.TOLERANCE < 0.1
    with pytest.raises(ValueError, match=r"slim.pt2: outputs differ by .* nothing was written"):
        save_program(nn.ReLU(), torch.rand(2, 3), tmp_path / "slim.pt2")
    assert not list(tmp_path.iterdir())
