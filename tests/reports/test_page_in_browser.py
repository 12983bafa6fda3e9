"""The comparison page in a browser: points, filters, keys, widths, colours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from reports.build.candidates import AXES, candidates
from reports.build.page import page
from tests import browser
from tests.reports import contest
from tests.reports.pages import made, styles_of

KEY = {"right": "\ue014", "enter": "\ue007", "escape": "\ue00c", "tab": "\ue004"}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if browser.CHROMIUM is None or browser.DRIVER is None:
        pytest.skip(browser.MISSING)
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(made(latency=True))
    with browser.chromium(folder) as b:
        b.open((folder / "page.html").as_uri())
        yield b


@pytest.fixture
def shown(chromium: browser.Browser) -> browser.Browser:
    """The page as it opens."""
    chromium.run("location.hash = ''; location.reload()")
    chromium.wait("return document.querySelectorAll('.point').length === 19")
    return chromium


def points(b: browser.Browser) -> int:
    return int(b.run("return document.querySelectorAll('.point').length"))


def names(b: browser.Browser) -> list[str]:
    cells = "[...document.querySelectorAll('#table tbody td.is-name > span')]"
    return [str(t) for t in b.run(f"return {cells}.map((td) => td.textContent.trim())")]


def text(b: browser.Browser, css: str) -> str:
    return str(b.run("return document.querySelector(arguments[0]).textContent", css))


@pytest.mark.browser
def test_it_opens_without_a_complaint(shown: browser.Browser) -> None:
    assert shown.errors() == []
    assert len(names(shown)) == 19
    assert "6 methods, 2 networks" in text(shown, "#summary")
    assert shown.run("return document.querySelectorAll('.front').length") == 1


@pytest.mark.browser
def test_hovering_tells_about_a_point(shown: browser.Browser) -> None:
    shown.hover('.point[aria-label^="resnet20-imp-p90"] .mark')
    shown.wait("return !document.getElementById('tip').hidden")
    assert "resnet20-imp-p90" in text(shown, "#tip")
    assert "prune_per_round 0.2" in text(shown, "#tip")
    assert "resnet20-imp-p90" in text(shown, "tr.hot")


@pytest.mark.browser
def test_filters_change_plot_and_table_alike(shown: browser.Browser) -> None:
    shown.click("#methods label:nth-of-type(2)")
    assert points(shown) == len(names(shown)) == 16
    assert not any("hspg" in name for name in names(shown))
    shown.type("#find", "p90 unstructured")
    assert names(shown) == [f"resnet20-{m}-p90" for m in ("dense", "sfw", "imp")]
    assert points(shown) == 3
    assert "off=hspg" in shown.run("return location.hash")


@pytest.mark.browser
def test_headings_sort(shown: browser.Browser) -> None:
    shown.click('th button[data-key="top1"]')
    first = names(shown)
    assert first[0] == "resnet20-dense"
    assert first[-1] == "resnet20-dense-p90"
    shown.click('th button[data-key="top1"]')
    assert names(shown)[0] == "resnet20-dense-p90"
    sort = "return document.querySelector('[data-key=top1]').parentNode.ariaSort"
    assert shown.run(sort) == "ascending"


@pytest.mark.browser
def test_keys_alone_reach_a_test_of_two_methods(shown: browser.Browser) -> None:
    shown.run("document.querySelector('.point[tabindex=\"0\"]').focus()")
    before = shown.run("return document.activeElement.getAttribute('aria-label')")
    shown.keys(KEY["right"])
    after = shown.run("return document.activeElement.getAttribute('aria-label')")
    assert before != after
    shown.keys(KEY["enter"])
    name = after.split(",")[0]
    assert name in text(shown, "#detail h2")
    assert "0.063" in text(shown, "#detail table")
    assert name in text(shown, "tr.picked")
    shown.keys(KEY["escape"])
    assert shown.run("return document.querySelectorAll('.picked').length") == 0


@pytest.mark.browser
def test_every_network_and_quantity_can_be_drawn(shown: browser.Browser) -> None:
    options = "return [...document.getElementById(arguments[0]).options].map((o) => o.value)"
    assert shown.run(options, "x")[-1] == "latency1"
    choose = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    for network in shown.run(options, "network"):
        shown.run(choose, "network", network)
        for y in shown.run(options, "y"):
            shown.run(choose, "y", y)
            for x in shown.run(options, "x"):
                shown.run(choose, "x", x)
                for box in ("log", "each"):
                    shown.click(f"#{box}")
                    assert points(shown) == (18 if x == "latency1" else 19)
                    assert not shown.run("return /NaN|Infinity/.test(chart.innerHTML)")
    assert shown.errors() == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 1200, 1101, 1000, 390])
def test_nothing_is_cut(shown: browser.Browser, width: int) -> None:
    """No element of the page reaches beyond the window or hides a part of its text."""
    shown.resize(width, 900)
    shown.wait(f"return innerWidth === {width} && chart.viewBox.baseVal.width < {width}")
    assert shown.run("return document.documentElement.scrollWidth <= innerWidth")
    cut = """
      const inside = (e) =>
        e.getBoundingClientRect().width && !e.closest("#detail, .hidden, select");
      const beyond = (e) => e.getBoundingClientRect().right > innerWidth + 1
        || (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== "visible");
      return [...document.querySelectorAll("body *")]
        .filter((e) => inside(e) && beyond(e)).map((e) => e.outerHTML.slice(0, 90));
    """
    assert shown.run(cut) == []
    names = shown.run("return [...document.querySelectorAll('.name')].map((t) => t.textContent)")
    assert len(names) >= 10
    assert "dense" in names


@pytest.mark.browser
def test_an_outlier_stands_at_the_edge_and_says_where_it_is(
    shown: browser.Browser, tmp_path: Path
) -> None:
    runs = contest.runs()
    runs.loc[runs["params.pruning"].str.contains("resnet20-dense-.*p90"), "metrics.final/top1"] = 20
    rows = candidates(runs, pd.DataFrame())
    file = tmp_path / "outlier.html"
    file.write_text(page("contest", rows, AXES, ["top1"], styles_of(rows)))
    shown.open(file.as_uri())
    named = "return [...document.querySelectorAll('.name')].map((t) => t.textContent)"
    ticks = (
        "return [...document.querySelectorAll('.tick[text-anchor=end]')].map((t) => +t.textContent)"
    )
    assert "dense-p90 ↓ 20.0" in shown.run(named)
    assert min(shown.run(ticks)) > 80
    shown.click("#wide")
    assert "dense-p90" in shown.run(named)
    assert min(shown.run(ticks)) <= 20


@pytest.mark.browser
def test_light_and_dark_are_readable(shown: browser.Browser) -> None:
    """WCAG contrast of text, quiet text and every mark against its ground."""
    contrast = """
      const root = getComputedStyle(document.documentElement);
      const light = (name) => {
        const hex = root.getPropertyValue(name).trim();
        const full = hex.length === 4 ? hex.replace(/[0-9a-f]/gi, "$&$&") : hex;
        const [r, g, b] = [1, 3, 5].map((i) => parseInt(full.slice(i, i + 2), 16) / 255)
          .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const [a, b] = [light(arguments[0]), light(arguments[1])];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    """
    for _ in range(2):
        for ground in ("--ground", "--panel"):
            assert shown.run(contrast, "--text", ground) > 7
            assert shown.run(contrast, "--quiet", ground) > 4.5
            for i in range(6):
                assert shown.run(contrast, f"--c{i}", ground) > 3, i
        shown.click("#theme")
