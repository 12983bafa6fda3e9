"""The delivered network is an ordinary module: it saves, copies, exports, compiles and trains."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.info import DatasetInfo
from pipeline.files import load_tree, save_tree
from pipeline.measure.count import count
from pipeline.study.records.artifacts import NetworkSpec, rebuild
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from tests.pipeline.units.laws import random_plan, randomise_bn, relative

INFO = DatasetInfo("toy", (3, 16, 16), 5)
NETWORKS = {
    "resnet8": NetworkSpec("small", "resnet8", {"width": 8}, INFO),
    "vgg_small": NetworkSpec("small", "vgg_small", {"width": 8}, INFO),
    "mobilenet_v2": NetworkSpec("mobilenet", "mobilenet_v2", {"width": 8}, INFO),
    "preact_resnet": NetworkSpec("preact", "preact_resnet18", {"width": 8}, INFO),
    "dead_branch": NetworkSpec("small", "resnet8", {"width": 8}, INFO),
}
DEAD = {"dead_branch": "layer2.0.conv1"}  # loses all its channels: layers become constants
IMAGES = torch.randn(4, *INFO.input_shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Delivered:
    """A pruned network, how to build it again, and its outputs for `IMAGES`."""

    network: NetworkSpec
    plan: PruningPlan
    model: nn.Module
    outputs: Tensor

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.model)

    def agrees(self, outputs: Tensor, tolerance: float) -> bool:
        return relative([self.outputs], [outputs]) <= tolerance


def deliver(network: NetworkSpec, dead: str | None = None) -> Delivered:
    torch.manual_seed(0)
    model = randomise_bn(network.build(), torch.Generator().manual_seed(1)).eval()
    dense, units = copy.deepcopy(model), network.units(model)
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(2))
    if dead is not None:
        gone = {dead: torch.zeros_like(plan.keep[dead])}
        plan = PruningPlan(plan.granularity, {**plan.keep, **gone})
    shrink(plan, model, units)
    small, large = (count(m, network.example()).params for m in (model, dense))
    assert small < 0.5 * large
    with torch.no_grad():
        return Delivered(network, plan, model, model(IMAGES))


@pytest.fixture(scope="module", params=NETWORKS)
def delivered(request: pytest.FixtureRequest) -> Delivered:
    return deliver(NETWORKS[request.param], DEAD.get(request.param))


@pytest.fixture(scope="module")
def classifier() -> Delivered:
    """Linear layers only."""
    return deliver(NetworkSpec("mlp", "mlp", {"widths": (64, 64)}, INFO))


def test_state_loads_strictly_into_a_rebuilt_network(delivered: Delivered, tmp_path: Path) -> None:
    save_tree(tmp_path / "model", delivered.model.state_dict())
    again = rebuild(delivered.network, delivered.plan, load_tree(tmp_path / "model")).eval()
    with torch.no_grad():
        assert torch.equal(again(IMAGES), delivered.outputs)


def test_torch_saves_and_copies_it(delivered: Delivered, tmp_path: Path) -> None:
    torch.save(delivered.model.state_dict(), tmp_path / "model.pt")
    other = delivered.copy()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        assert not torch.equal(other(IMAGES), delivered.outputs)
        assert torch.equal(delivered.model(IMAGES), delivered.outputs)
        other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
        assert torch.equal(other(IMAGES), delivered.outputs)


def test_layers_say_their_sizes(delivered: Delivered) -> None:
    for layer in delivered.model.modules():
        if isinstance(layer, nn.Conv2d):
            per_group = layer.in_channels // layer.groups
            assert tuple(layer.weight.shape[:2]) == (layer.out_channels, per_group)
        elif isinstance(layer, nn.Linear):
            assert tuple(layer.weight.shape) == (layer.out_features, layer.in_features)
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert len(layer.running_mean) == layer.num_features


def test_torch_export(delivered: Delivered, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(delivered.copy(), (IMAGES,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        assert delivered.agrees(again(IMAGES), 1e-5)
        assert delivered.agrees(torch.cat([again(IMAGES[:2]), again(IMAGES[2:])]), 1e-5)


def test_onnx(delivered: Delivered, tmp_path: Path) -> None:
    reason = "the onnx extra is not installed: pip install -e .[onnx]"
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=reason)
    runtime = pytest.importorskip("onnxruntime", reason=reason)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter and onnxscript warn of each other
        torch.onnx.export(delivered.copy(), (IMAGES,), path, dynamo=True, verbose=False)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    assert delivered.agrees(torch.from_numpy(found), 1e-4)


def test_torch_compile_takes_it_whole(delivered: Delivered) -> None:
    torch.compiler.reset()
    compiled = torch.compile(delivered.copy(), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert delivered.agrees(compiled(IMAGES), 1e-5)


def test_dynamic_quantisation(classifier: Delivered) -> None:
    reason = "this torch has no eager quantisation any more: use torchao"
    eager = pytest.importorskip("torch.ao.quantization", reason=reason)
    with warnings.catch_warnings():
        # deprecated in favour of torchao, which is no dependency of ours (2026-11)
        warnings.simplefilter("ignore")
        small = eager.quantize_dynamic(classifier.copy(), {nn.Linear}, dtype=torch.qint8)
        with torch.no_grad():
            found = small(IMAGES)
    assert classifier.agrees(found, 0.05)
    assert not torch.equal(found, classifier.outputs)
    linear = [layer for layer in small.modules() if isinstance(layer, nn.Linear)]
    assert not linear, "every linear layer is quantised"


def test_it_finetunes(delivered: Delivered) -> None:
    model = delivered.copy().train()
    labels = torch.arange(len(IMAGES)) % INFO.num_classes
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(IMAGES), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0], losses
