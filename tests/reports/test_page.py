"""The comparison page: self-contained and the same bytes everywhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from reports.build.candidates import AXES, candidates
from reports.build.page import WEB, page, write_comparison
from reports.build.significance import sign_flip
from reports.build.style import MARKERS, robust_range
from tests.reports import contest
from tests.reports.pages import made, styles_of


def test_one_file_that_needs_nothing_else() -> None:
    text = made(latency=True)
    assert len(text.encode()) < 400_000
    assert not re.search(r"""(?:src|href)=["']|https?://|@import|url\(|fetch\(|import\(""", text)
    assert "{{" not in text.replace("${{", "")


def test_the_data_cannot_end_the_script() -> None:
    runs = contest.runs(1)
    runs["params.data"] = "</script><b>"
    rows = candidates(runs, pd.DataFrame())
    text = page("</title>", rows, AXES, ["top1"], styles_of(rows))
    assert text.count("</script>") == 2
    assert text.count("</title>") == 1
    found = re.search(r'type="application/json">(.*?)</script>', text)
    assert found is not None
    assert json.loads(found.group(1))["rows"][0]["data"] == "</script><b>"


def test_every_element_the_script_asks_for_is_there() -> None:
    script, html = (WEB / "compare.js").read_text(), (WEB / "compare.html").read_text()
    asked = set(re.findall(r"""(?:\$|getElementById)\("([\w-]+)"\)""", script))
    assert len(asked) > 10
    assert asked <= set(re.findall(r'id="([\w-]+)"', html))


def test_tracked_files_hold_no_latency_and_local_ones_do(tmp_path: Path) -> None:
    for name, latency in (("with", True), ("without", False)):
        runs = contest.runs(latency=latency)
        styles = styles_of(candidates(runs, pd.DataFrame()))
        write_comparison("contest", runs, pd.DataFrame(), styles, tmp_path / name)
    for name in ("tables/compare.html", "plots/compare.svg", "plots/compare.png"):
        one, other = (tmp_path / n / name for n in ("with", "without"))
        assert one.read_bytes() == other.read_bytes()
    assert "latency1" in (tmp_path / "with/local/compare.html").read_text()


def node(script: str) -> str:
    """What a script prints that has the pure functions of the page."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs node, to run the page's script without a browser")
    names = (
        "mean, deviation, spots, paretoFront, signFlip, paired, robustRange, placeNames, ticks, "
        "pretty, spread, csv, outline"
    )
    head = f"const {{ {names} }} = require({json.dumps(str(WEB / 'compare.js'))});"
    done = subprocess.run(
        [program, "-e", head + script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_tests_as_the_tables_do() -> None:
    cases = [[1.0], [0.5, -0.2, 0.1], [1.0, 1.0, 1.0], [0.1, 0.2, 0.3, 0.15, -0.3, 0.9], [0.0] * 4]
    printed = node(f"console.log(JSON.stringify({json.dumps(cases)}.map(signFlip)))")
    assert json.loads(printed) == pytest.approx([sign_flip(c) for c in cases])


def test_the_front_of_the_page() -> None:
    front = "(up) => paretoFront([[1,5],[2,6],[2,7],[3,7],[4,9],[5,1]].map(([x,y]) => ({x,y})), up)"
    printed = node(f"const f = {front}; console.log(JSON.stringify([f(true), f(false)]))")
    best, least = json.loads(printed)
    assert [(p["x"], p["y"]) for p in best] == [(1, 5), (2, 7), (4, 9)]
    assert [(p["x"], p["y"]) for p in least] == [(1, 5), (5, 1)]


def test_the_page_and_the_figures_agree_on_outliers() -> None:
    cases = [
        [99.2, 28.9, 98.3, 98.1, 99.4, 98.3, 68.3, 99.2, 98.6, 98.9],
        [1.0, 2.0, 100.0],
        [1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0],
        [5.0] * 6,
        [10.0, 12.0, 11.0, 13.0, 12.5, 90.0],
    ]
    printed = node(f"console.log(JSON.stringify({json.dumps(cases)}.map(robustRange)))")
    for found, case in zip(json.loads(printed), cases, strict=True):
        assert found == pytest.approx(robust_range(case))
    assert robust_range(cases[0]) == (98.1, 99.4)


def test_names_cover_neither_marks_nor_each_other() -> None:
    marks = [{"x": 50 + 9 * i, "y": 60 + 5 * (i % 3), "text": f"row-{i}"} for i in range(20)]
    frame = {"left": 0, "top": 0, "right": 400, "bottom": 200}
    call = f"placeNames({json.dumps(marks)}, {json.dumps(frame)})"
    found = json.loads(node(f"console.log(JSON.stringify({call}))"))
    boxes = []
    for mark, place in zip(marks, found, strict=True):
        if place is None:
            continue
        wide = 7.3 * len(str(mark["text"]))
        left = place["x"] - {"start": 0, "middle": wide / 2, "end": wide}[place["anchor"]]
        boxes.append((left, place["y"] - 10, left + wide, place["y"] + 3))
    assert 5 < len(boxes) < 20
    for i, (a, b, c, d) in enumerate(boxes):
        assert a >= 0
        assert c <= 400
        assert not any(a < g and e < c and b < h and f < d for e, f, g, h in boxes[:i])
        assert not any(a < m["x"] < c and b < m["y"] < d for m in marks)


def test_the_page_draws_as_many_markers_as_the_figures() -> None:
    ten = "[...Array(11).keys()].map(outline)"
    drawn = json.loads(node(f"console.log(JSON.stringify({ten}))"))
    assert len(set(drawn[:-1])) == len(MARKERS) == 10
    assert drawn[10] == drawn[0]


def test_numbers_of_the_page() -> None:
    printed = node(
        "console.log(pretty(8.87e14), pretty(93.216), pretty(-0.001), spread([1, 2]),"
        "spread(undefined),"
        "JSON.stringify(ticks(0, 100, 5)), JSON.stringify(ticks(0.9, 30, 5, true)),"
        """csv(["a"], [['x,"y']]).trim())"""
    )
    assert printed.strip() == (
        '887 T 93.22 0.00 1.50 ± 0.71 – [0,20,40,60,80,100] [1,2,5,10,20] a\n"x,""y"'
    )
