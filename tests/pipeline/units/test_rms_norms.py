"""The hidden width of decoders with RMS norms: groups, both laws, what is no such norm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.measure.count import MacsModel, count
from pipeline.units.decoder_folder import save_decoder
from pipeline.units.groups import Granularity, NormKind
from pipeline.units.plan import PruningPlan
from pipeline.units.rms_norms import AllDouble, norm_kind
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.pipeline.units.cases import Net
from tests.pipeline.units.laws import assert_laws, outputs, random_plan, randomise_bn, relative

HIDDEN, LAYERS = 32, 2
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
DECODERS = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text", "SmolLM3")
PER_LAYER = {"Gemma2": 4, "Gemma3Text": 4}
EXAMPLE = {"input_ids": torch.arange(12).reshape(2, 6), "use_cache": False}


def decoder(name: str, tied: bool) -> Callable[[], nn.Module]:
    import transformers

    kind = name.removesuffix("Text")
    config = getattr(transformers, f"{name}Config")(**SIZES, tie_word_embeddings=tied)

    def build() -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
        return model.eval()

    return build


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_loses_hidden_channels_exactly(name: str, tied: bool) -> None:
    build = decoder(name, tied)
    units = trace_units(build(), EXAMPLE)
    stream = units.by_name()["model.embed_tokens"]
    assert stream.prunable
    assert stream.size == HIDDEN
    readers = {s.tensor for s in stream.slices}
    assert {f"model.layers.{i}.mlp.down_proj.weight" for i in range(LAYERS)} <= readers
    assert ("lm_head.weight" in readers) != tied
    per_layer = PER_LAYER.get(name, 2)
    assert len(units.norms) == per_layer * LAYERS + 1
    plan = random_plan(units, 0.4, torch.Generator().manual_seed(0))
    with AllDouble():
        shrunk = assert_laws(build, EXAMPLE, units, plan)
    assert shrunk.model.embed_tokens.weight.shape[1] == HIDDEN - round(0.4 * HIDDEN)
    costs, counted = MacsModel(build(), EXAMPLE, units), count(shrunk.float(), EXAMPLE)
    assert (costs.params(plan), costs.macs(plan)) == (counted.params, counted.macs)


def test_a_stream_may_go_twice_and_wholly() -> None:
    build = decoder("Llama", False)
    model = build().double()
    for _ in range(2):
        units = trace_units(model, EXAMPLE)
        size = units.by_name()["model.embed_tokens"].size
        keep = {"model.embed_tokens": torch.arange(size) % 4 > 0}
        plan = PruningPlan(Granularity.STRUCTURED, keep)
        with AllDouble():
            shrink(plan, model, units)
    assert model.model.norm.variance_epsilon == pytest.approx(1e-6 * HIDDEN / 18)
    units = trace_units(build(), EXAMPLE)
    gone = {"model.embed_tokens": torch.zeros(HIDDEN, dtype=torch.bool)}
    with AllDouble():
        assert_laws(build, EXAMPLE, units, PruningPlan(Granularity.STRUCTURED, gone))


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_torchs_own_rms_norm(eps: float | None) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        layers = {"a": nn.Linear(6, 8), "norm": nn.RMSNorm(8, eps), "b": nn.Linear(8, 3)}
        return Net(lambda self, x: self.b(self.norm(self.a(x))), **layers)

    example = 0.02 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    units = trace_units(build(), example)
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    shrunk = assert_laws(build, example, units, plan)
    assert shrunk.norm.normalized_shape == (4,)
    assert float(outputs(shrunk, example.double())[0].abs().max()) > 0


class Own(nn.Module):
    """A norm as people write it: `mode` says what differs."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.gain, self.tiny, self.mode = nn.Parameter(torch.ones(8)), 1e-5, mode

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "sequences only":
            _, _, _ = x.shape
        squares = x.square().mean(-1, keepdim=True)
        if self.mode == "own eps":
            return x / torch.sqrt(squares + 1e-5) * self.gain
        if self.mode == "mean too":
            return (x - x.mean(-1, keepdim=True)) / torch.sqrt(squares + self.tiny) * self.gain
        if self.mode == "one plus":
            return x / torch.sqrt(squares + self.tiny) * (1 + self.gain)
        return x / torch.sqrt(squares + self.tiny) * self.gain


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("plain", NormKind("gain", "tiny", 0.0)),
        ("sequences only", NormKind("gain", "tiny", 0.0)),
        ("one plus", NormKind("gain", "tiny", 1.0)),
        ("own eps", None),
        ("mean too", None),
    ],
)
def test_a_norm_is_known_by_what_it_does(mode: str, kind: NormKind | None) -> None:
    assert norm_kind(Own(mode)) == kind
    torch.manual_seed(0)
    model = Net(
        lambda self, x: self.b(self.norm(self.a(x))),
        a=nn.Linear(6, 8),
        norm=Own(mode),
        b=nn.Linear(8, 3),
    )
    (group,) = (g for g in trace_units(model, torch.randn(4, 5, 6)).groups if g.name == "a")
    assert group.prunable == (kind is not None)
    assert bool(group.reason) == (kind is None)


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm(8), nn.PReLU(8), nn.Linear(8, 1), nn.BatchNorm1d(8)]
)
def test_other_layers_are_no_rms_norms(layer: nn.Module) -> None:
    assert norm_kind(layer) is None


def even_plan(units: Any, kept: float) -> PruningPlan:
    """The same fraction of every group, so that one config describes all layers."""
    keep = {g.name: torch.arange(g.size) < round(kept * g.size) for g in units.prunable}
    return PruningPlan(Granularity.STRUCTURED, keep)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_a_pruned_decoder_is_a_folder_that_transformers_loads(
    name: str, tied: bool, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = decoder(name, tied)()
    units = trace_units(model, EXAMPLE)
    randomise_bn(model, torch.Generator().manual_seed(1))
    shrink(even_plan(units, 0.5), model, units)
    save_decoder(model, tmp_path / "slim")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "slim").eval()
    assert again.config.hidden_size == HIDDEN // 2
    assert again.config.num_key_value_heads == 1
    scale = 1 if name in ("Qwen3", "Gemma3Text") else 2  # one eps for its norms of heads too
    assert again.config.rms_norm_eps == pytest.approx(scale * model_eps(name))
    assert relative(outputs(model, EXAMPLE), outputs(again, EXAMPLE)) < 1e-6
    with pytest.raises(FileExistsError, match="folder of its own"):
        save_decoder(model, tmp_path / "slim")


def model_eps(name: str) -> float:
    return float(decoder(name, False)().config.rms_norm_eps)


def test_a_config_that_cannot_say_it_is_refused(tmp_path: Path) -> None:
    model = decoder("Llama", False)()
    units = trace_units(model, EXAMPLE)
    keep = {"model.layers.0.mlp.gate_proj": torch.arange(48) < 24}
    shrink(PruningPlan(Granularity.STRUCTURED, keep), model, units)
    with pytest.raises(ValueError, match=r"intermediate_size: the layers differ \(24, 48\)"):
        save_decoder(model, tmp_path / "slim")
    assert not list(tmp_path.iterdir())


class Odd(nn.Module):
    """An RMS norm, if nothing is done to its mean."""

    def __init__(self, on_mean: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-3
        self.on_mean = on_mean

    def forward(self, x: Tensor, gate: Tensor | None = None, more: float = 0.0) -> Tensor:
        x = x if gate is None else x * gate
        mean = x.square().mean(-1, keepdim=True) + more
        mean = mean if self.on_mean is None else self.on_mean(mean)
        return x * torch.rsqrt(mean + self.eps) * self.weight


def odd(run: Callable[..., Tensor], one: Odd, other: Odd) -> nn.Module:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "c": nn.Linear(8, 3)}
    return Net(run, **layers, one=one, other=other)


def tied() -> nn.Module:
    one, other = Odd(), Odd()
    other.weight = one.weight
    return odd(lambda n, x: n.c(n.other(n.one(n.a(x)))), one, other)


@pytest.mark.parametrize(
    ("run", "on_mean", "prunable"),
    [
        (lambda n, x: n.c(n.one(n.a(x))), None, 8),
        (lambda n, x: n.c(n.one(n.a(x), gate=n.b(x))), None, 8),
        (lambda n, x: n.c(n.one(n.a(x), None, 0.5)), None, 0),
        (lambda n, x: n.c(n.one(n.a(x))), nn.Tanh(), 0),
        (lambda n, x: n.c(n.one(n.a(x)) + n.b(x) * n.one.weight), None, 0),
    ],
)
def test_norms_that_do_more_than_those_they_resemble(
    run: Callable[..., Tensor], on_mean: nn.Module | None, prunable: int
) -> None:
    def build() -> nn.Module:
        return odd(run, Odd(on_mean), Odd())

    x = torch.linspace(-1, 1, 12).view(2, 6)
    units = trace_units(build(), x)
    assert sum(g.size for g in units.prunable) == prunable
    for fraction in (0.5, 1.0) if prunable else ():
        generator = torch.Generator().manual_seed(0)
        assert_laws(build, x, units, random_plan(units, fraction, generator))


def test_a_weight_that_two_norms_share_is_scaled_once() -> None:
    x = torch.linspace(-1, 1, 12).view(2, 6)
    units = trace_units(tied(), x)
    assert len(units.norms) == 2
    assert_laws(tied, x, units, random_plan(units, 0.5, torch.Generator().manual_seed(0)))


def test_a_dead_norm_passes_what_it_gets_beside_its_input() -> None:
    def build() -> nn.Module:
        return odd(lambda n, x: n.c(n.one(n.a(x), n.b(x))), Odd(), Odd())

    x = torch.linspace(-1, 1, 12).view(2, 6)
    units = trace_units(build(), x)
    keep = {g.name: torch.zeros(g.size, dtype=torch.bool) for g in units.prunable}
    assert_laws(build, x, units, PruningPlan(Granularity.STRUCTURED, keep))
