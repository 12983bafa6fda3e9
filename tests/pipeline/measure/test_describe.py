"""Groups in words and numbers, and the page that draws them."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from pipeline.cli.drawing import as_html
from pipeline.cli.units import units as main
from pipeline.data.info import DatasetInfo
from pipeline.measure.count import count
from pipeline.measure.describe import Description, as_text, describe
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.units.groups import Granularity, Units
from pipeline.units.plan import PruningPlan
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units

INFO = DatasetInfo("toy", (3, 8, 8), 3)
NETWORKS = {
    "resnet8": NetworkSpec("small", "resnet8", {"width": 4}, INFO),
    "vgg_small": NetworkSpec("small", "vgg_small", {"width": 4}, INFO),
    "mobilenet_v2": NetworkSpec("mobilenet", "mobilenet_v2", {"width": 4}, INFO),
}


class Attention(nn.Module):
    """Four heads of two features each, between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.query, self.key, self.value = (nn.Linear(3, 8) for _ in range(3))
        self.out = nn.Linear(8, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(self.out(y))


def traced(network: NetworkSpec) -> tuple[nn.Module, Tensor, Units]:
    torch.manual_seed(0)
    model = network.build().eval()
    return model, network.example(), network.units(model)


@pytest.fixture(scope="module")
def resnet() -> Description:
    return describe(*traced(NETWORKS["resnet8"]))


class Flat(nn.Module):
    """Two groups that can be counted by hand, one layer that never runs, and an embedding table
    that belongs to the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3 * 4 * 4, 5)
        self.out = nn.Linear(5, 2)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.norm(self.conv(x)).flatten(1)).relu())


def flat() -> Description:
    model, x = Flat().eval(), torch.randn(1, 1, 4, 4)
    return describe(model, x, trace_units(model, x))


def test_a_network_counted_by_hand() -> None:
    d = flat()
    conv, fc, out = d.rows
    assert (conv.name, conv.size, conv.prunable, conv.reason) == ("conv", 3, True, "")
    assert [str(p) for p in conv.producers] == ["conv"]
    assert [str(p) for p in conv.norms] == ["norm"]
    assert [str(p) for p in conv.consumers] == ["fc (16 positions each)"]
    assert conv.feeds == ("fc",)
    # 9 weights and a bias, scale and shift, 16 inputs of each of 5 features
    assert conv.channel_params == 10 + 2 + 16 * 5
    assert conv.channel_macs == 9 * 16 + 16 * 5
    assert (conv.group_params, conv.group_macs) == (3 * 92, 3 * 224)
    assert (fc.channel_params, fc.channel_macs) == (48 + 1 + 2, 48 + 2)
    assert fc.feeds == ("out",)
    assert not out.prunable
    assert "output" in out.reason
    assert (out.channel_params, out.channel_macs) == (6, 5)
    assert d.loose == ("idle",)
    assert (d.channels, d.prunable_channels) == (10, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_prices_are_those_of_surgery(name: str) -> None:
    model, example, units = traced(NETWORKS[name])
    dense = count(model, example)
    rows = describe(model, example, units).rows
    assert [row.name for row in rows] == [group.name for group in units.groups]
    for row in [row for row in rows if row.prunable][:: 1 + len(rows) // 8]:
        one = torch.ones(row.size, dtype=torch.bool)
        one[0] = False
        for mask, wanted in (
            (one, (row.channel_params, row.channel_macs)),
            (one & False, (row.group_params, row.group_macs)),
        ):
            smaller = copy.deepcopy(model)
            shrink(PruningPlan(Granularity.STRUCTURED, {row.name: mask}), smaller, units)
            left = count(smaller, example)
            assert (dense.params - left.params, dense.macs - left.macs) == wanted, row.name


def test_prices_of_attention_are_those_of_surgery() -> None:
    torch.manual_seed(0)
    model, example = Attention().eval(), torch.randn(1, 5, 3)
    units = trace_units(model, example)
    heads = describe(model, example, units).rows[0]
    assert (heads.size, heads.prunable) == (4, True)
    assert "query (2 positions each)" in map(str, heads.producers)
    keep = torch.tensor([False, True, True, True])
    smaller = copy.deepcopy(model)
    shrink(PruningPlan(Granularity.STRUCTURED, {heads.name: keep}), smaller, units)
    dense, left = count(model, example), count(smaller, example)
    assert dense.params - left.params == heads.channel_params == 3 * 2 * (3 + 1) + 2 * 6
    assert dense.macs - left.macs == heads.channel_macs == 5 * (3 * 2 * 3 + 2 * 6) + 2 * 5 * 5 * 2


def test_what_feeds_what_follows_the_layers(resnet: Description) -> None:
    feeds = {row.name: row.feeds for row in resnet.rows}
    assert feeds["conv1"] == ("layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2")
    assert feeds["layer1.0.conv1"] == ("conv1",)  # the residual stream that it is added to
    assert feeds["layer3.0.conv2"] == ("linear",)


def test_text_names_every_layer_and_every_reason(resnet: Description) -> None:
    text = "\n".join(as_text(resnet))
    model, _, _ = traced(NETWORKS["resnet8"])
    for name, layer in model.named_modules():
        if layer._parameters:
            assert re.search(rf"\b{re.escape(name)}\b", text), name
    assert "6 of 7 channel groups prunable" in text
    assert re.search(r"^linear \[3\]  not prunable: .*output", text, re.MULTILINE)
    assert "in no group" in "\n".join(as_text(flat()))


class Page(HTMLParser):
    """What a browser would see of the tags: ids, resources, whether they nest."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.outside: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key in ("src", "href") and value != "#":
                self.outside.append(f"{tag} {value}")
            if tag == "details" and key == "data-name":
                self.names.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def test_page_is_whole_and_needs_nothing_else(resnet: Description) -> None:
    text = as_html("small/resnet8", resnet)
    page = Page(text)
    assert page.open == []
    assert page.names == [row.name for row in resnet.rows]
    assert page.outside == []
    assert "{{" not in text
    assert not re.search(r"@import|url\(|fetch\(|import\(", text)
    found = re.search(r"const edges = (.*);", "".join(page.scripts))
    assert found
    rows = resnet.rows
    drawn = {(rows[a].name, rows[b].name) for a, b in json.loads(found.group(1))}
    assert drawn == {(row.name, name) for row in rows for name in row.feeds}


def test_page_escapes_what_it_is_given() -> None:
    text = as_html("<script>{{rows}}</script>", flat())
    assert "<script>{{rows}}" not in text
    assert "&lt;script&gt;{{rows}}" in text
    assert Page(text).names == ["conv", "fc", "out"]


def test_command_prints_and_draws(tmp_path: Path) -> None:
    file = tmp_path / "units.html"
    arguments = ["--model", "small/resnet8", "--input", "1x8x8", "--html", str(file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "layer1.0.conv1 [16]" in result.output
    assert Page(file.read_text(encoding="utf-8")).names


def test_command_reads_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[3]
    (tmp_path / "params.yaml").write_text((root / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["--training", "resnet8-dense-s0"])
    assert result.exit_code == 2
    assert "dvc repro prepare-data" in result.output
    assert "--model small/resnet8" in result.output
    (tmp_path / "data/prepared").mkdir(parents=True)
    prepared = SimpleNamespace(info=DatasetInfo("digits", (1, 8, 8), 10))
    monkeypatch.setattr("pipeline.data.prepared.load_prepared", lambda _: prepared)
    result = CliRunner().invoke(main, ["--training", "resnet8-dense-s0"])
    assert result.exit_code == 0, result.output
    assert "linear [10]" in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "either --training NAME or --model"),
        (["--model", "resnet8"], "FAMILY/NAME"),
        (["--model", "small/resnet8", "--input", "8"], "CxHxW"),
        (["--model", "small/resnet9"], "known: resnet8, vgg_small"),
    ],
)
def test_command_says_what_is_wrong(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
