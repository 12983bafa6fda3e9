"""Weights made from other tensors in the forward: listed, never cut, and the reason is said."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from types import MethodType

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from pipeline.measure.describe import describe
from pipeline.units.groups import Granularity, layer_of
from pipeline.units.plan import PruningPlan
from pipeline.units.trace import trace_units
from tests.pipeline.units.cases import Net, conv, image
from tests.pipeline.units.laws import assert_laws, outputs, random_plan

OTHER = "head"  # a layer that nothing is done to: it stays prunable


@pytest.fixture(autouse=True)
def _no_deprecations() -> Iterator[None]:
    """The old hooks and the quantisation of torch are what some networks still have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Bounded(nn.Module):
    """A parametrization without parameters."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


class Standardised(nn.Conv2d):
    """Weights of mean zero, as in BiT."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Adapted(nn.Conv2d):
    """A weight plus a product of two thin ones, as in LoRA."""

    def __init__(self, a: int, b: int, k: int) -> None:
        super().__init__(a, b, k, padding=k // 2)
        self.up = nn.Parameter(torch.randn(b, 2))
        self.down = nn.Parameter(torch.randn(2, a * k * k))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + (self.up @ self.down).view_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


def network(layer: nn.Module) -> nn.Module:
    """`layer` reads six channels and makes five; four more channels are nobody's business."""
    torch.manual_seed(0)

    def run(n: Net, x: Tensor) -> Tensor:
        x = torch.relu(n.mid(torch.relu(n.stem(x))))
        return n.out(torch.relu(n.head(x))).mean((2, 3))

    net = Net(run, stem=conv(3, 6), mid=layer, head=conv(5, 4), out=conv(4, 2, 1))
    outputs(net, image())  # until then the old hooks keep a weight with a graph: none can copy it
    return net


def changed(change: Callable[[nn.Module], object], layer: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(1)
    layer = conv(6, 5) if layer is None else layer
    change(layer)
    return layer


LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "old weight norm": (lambda: changed(weight_norm), "mid.weight_g, mid.weight_v"),
    "of the whole": (lambda: changed(lambda m: weight_norm(m, dim=None)), "mid.weight_g"),
    "of the inputs": (lambda: changed(lambda m: weight_norm(m, dim=1)), "mid.weight_g"),
    "weight norm": (
        lambda: changed(parametrizations.weight_norm),
        "mid.parametrizations.weight.original0, mid.parametrizations.weight.original1",
    ),
    "old spectral norm": (lambda: changed(spectral_norm), "from mid.weight_orig in"),
    "spectral norm": (
        lambda: changed(parametrizations.spectral_norm),
        "from mid.parametrizations.weight.original in",
    ),
    "orthogonal": (lambda: changed(parametrizations.orthogonal), "mid.parametrizations.weight"),
    "tanh": (
        lambda: changed(lambda m: parametrize.register_parametrization(m, "weight", Bounded())),
        "from mid.parametrizations.weight.original in",
    ),
    "torch's masks": (
        lambda: changed(lambda m: prune.l1_unstructured(m, "weight", 0.5)),
        "from mid.weight_orig in",
    ),
    "torch's masks of channels": (
        lambda: changed(lambda m: prune.ln_structured(m, "weight", 0.4, n=2, dim=0)),
        "from mid.weight_orig in",
    ),
    "transposed": (
        lambda: changed(parametrizations.weight_norm, nn.ConvTranspose2d(6, 5, 3, padding=1)),
        "mid.parametrizations.weight.original0",
    ),
    "depthwise": (
        lambda: nn.Sequential(changed(weight_norm, conv(6, 6, groups=6)), conv(6, 5)),
        "mid.0.weight_g",
    ),
    "standardised": (lambda: Standardised(6, 5, 3, padding=1), "from mid.weight in"),
    "adapted": (lambda: Adapted(6, 5, 3), "from mid.down, mid.up, mid.weight in"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_listed_with_the_reason(name: str) -> None:
    make, words = LAYERS[name]
    net = network(make())
    units = trace_units(net, image())
    groups = units.by_name()
    own = next(g for g in units.groups if g.name.startswith("mid"))
    for group in (groups["stem"], own):
        assert not group.prunable
        assert "takes a weight that is computed from" in group.reason
        assert words in group.reason
    assert own.slices[0].role == "producer"
    assert own.size == (6 if name == "depthwise" else 5)
    plain = ["mid.1"] if name == "depthwise" else []  # behind the one in question
    assert [g.name for g in units.prunable] == [*plain, OTHER]
    assert describe(net, image(), units).loose == ()
    left = [*(f"{n}.weight" for n in plain), "head.weight", "out.weight"]
    assert list(units.weights) == ["stem.weight", *left]  # a zero of the others need not stay one


@pytest.mark.parametrize("name", LAYERS)
def test_the_laws_hold_beside_it(name: str) -> None:
    make, _ = LAYERS[name]
    units = trace_units(network(make()), image())
    for fraction in (0.5, 1.0):
        plan = random_plan(units, fraction, torch.Generator().manual_seed(0))
        assert_laws(lambda: network(make()), image(), units, plan)


@pytest.mark.parametrize("name", LAYERS)
def test_tracing_leaves_the_layer_as_it_is(name: str) -> None:
    net = network(LAYERS[name][0]())
    before = {n: dict(m.__dict__) for n, m in net.named_modules()}
    state = copy.deepcopy(net.state_dict())
    trace_units(net, image())
    for path, module in net.named_modules():
        assert before[path].keys() == module.__dict__.keys()
        assert all(module.__dict__[k] is x for k, x in before[path].items() if k != "training")
    assert all(torch.equal(x, state[k]) for k, x in net.state_dict().items())


def test_without_the_norm_it_can_go() -> None:
    net = network(LAYERS["weight norm"][0]())
    parametrize.remove_parametrizations(net.mid, "weight")
    assert [g.name for g in trace_units(net, image()).prunable] == ["stem", "mid", OTHER]


def test_linear_layers_and_tables() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        layers = {"table": nn.Embedding(10, 6), "mid": nn.Linear(6, 5, bias=False)}
        for layer in layers.values():
            parametrizations.weight_norm(layer)
        return Net(lambda n, x: n.out(n.mid(torch.relu(n.table(x)))), **layers, out=nn.Linear(5, 2))

    example = torch.tensor([[1, 2, 3]])
    groups = trace_units(build(), example).by_name()
    assert groups.keys() == {"table", "mid", "out"}
    assert (groups["table"].size, groups["mid"].size) == (6, 5)
    assert "embedding takes a weight that is computed" in groups["table"].reason
    assert "linear takes a weight that is computed" in groups["mid"].reason


def test_a_tensor_shared_with_a_parametrized_layer_stays_whole() -> None:
    layers = {"table": nn.Embedding(10, 6), "mid": nn.Linear(6, 6)}
    out = nn.Linear(6, 10, bias=False)
    parametrize.register_parametrization(out, "weight", Bounded())
    net = Net(lambda n, x: n.out(torch.relu(n.mid(n.table(x)))), **layers, out=out)
    net.out.parametrizations.weight.original = net.table.weight
    units = trace_units(net, torch.tensor([[1, 2, 3]]))
    assert not units.prunable
    assert "computed from table.weight in" in units.by_name()["table"].reason


def test_a_parametrized_scale_goes_with_its_channels() -> None:
    """Zero stays zero under tanh, so masking the original is masking the scale."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(6)
        parametrize.register_parametrization(norm, "weight", Bounded())
        return nn.Sequential(conv(3, 6), norm, nn.ReLU(), conv(6, 2, 1))

    units = trace_units(build(), image())
    assert "1.parametrizations.weight.original" in {s.tensor for s in units.by_name()["0"].slices}
    for fraction in (0.5, 1.0):
        plan = random_plan(units, fraction, torch.Generator().manual_seed(0))
        assert_laws(build, image(), units, plan)


def _with_masked_bias(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "bias", 0.5)


def _with_a_hook(layer: nn.Module) -> None:
    layer.register_forward_hook(_add_one)


def _add_one(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output + 1.0


def _with_another_forward(layer: nn.Module) -> None:
    layer.forward = MethodType(lambda m, x: type(m).forward(m, x) + 1.0, layer)


class Padded(nn.Conv2d):
    """Pads in its own way."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias)


def test_a_convolution_of_another_shape_is_not_folded() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return network(Padded(6, 5, 3))

    units = trace_units(build(), image())
    plan = PruningPlan(Granularity.STRUCTURED, {"stem": torch.zeros(6, dtype=torch.bool)})
    assert_laws(build, image(), units, plan)


@pytest.mark.parametrize("change", [_with_masked_bias, _with_a_hook, _with_another_forward])
def test_a_layer_that_does_more_is_not_folded(change: Callable[[nn.Module], None]) -> None:
    """Its input is dead; a constant in its place would forget the mask or the hook."""

    def build() -> nn.Module:
        return network(changed(change))

    units = trace_units(build(), image())
    plan = PruningPlan(Granularity.STRUCTURED, {"stem": torch.zeros(6, dtype=torch.bool)})
    shrunk = assert_laws(build, image(), units, plan)
    assert isinstance(shrunk.mid, nn.Conv2d)


def test_a_cache_is_not_filled_by_tracing() -> None:
    class Positions(nn.Module):
        length, table = 0, None

        def forward(self, x: Tensor) -> Tensor:
            if self.length != x.shape[1]:
                self.length, self.table = x.shape[1], torch.ones_like(x[:1])
            return x + self.table

    net = nn.Sequential(conv(3, 6), Positions(), nn.ReLU(), conv(6, 2, 1))
    trace_units(net, image())
    assert (net[1].length, net[1].table) == (0, None)
    assert outputs(net, image())[0].isfinite().all()


def test_lazy_layers_need_a_first_run() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.LazyConv2d(6, 3), nn.ReLU(), nn.LazyConv2d(2, 1))
    with pytest.raises(ValueError, match=r"0\.weight, 0\.bias, 2\.weight.*run the model once"):
        trace_units(net, image())
    outputs(net, image())
    assert [g.size for g in trace_units(net, image()).prunable] == [6]


def test_the_layer_of_a_tensor() -> None:
    assert layer_of("a.0.parametrizations.weight.original1") == "a.0"
    assert layer_of("a.0.weight") == "a.0"
    assert layer_of("token") == "token"
