"""The result tables and the figure of README.md and docs/results.md, from tracked tables.

`espalier readme` rewrites the figure and the text between the marks of both files. A test fails if
they differ from the tables.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.files import write_text
from reports.build.figures import save_figure
from reports.build.scatter import Spot, draw_spots
from reports.build.style import Styles
from reports.build.table import TRAINED

BEGIN, END = "<!-- results -->", "<!-- /results -->"
STUDIES = (
    (".", "scikit-learn's digits, the default study (`make repro`)"),
    ("studies/resnet-cifar10", "trained CIFAR-10 ResNets, imported, pruned on real CIFAR-10"),
)
SHOWN = "studies/families-cifar10"  # the table and the figure of README.md
COMPARED = (
    ("studies/families-resnet20", "ResNet20 on the whole of real CIFAR-10, ten epochs, one seed"),
    (SHOWN, "every family at one budget, 10,000 real CIFAR-10 images, three seeds"),
)
PAPERS = (  # study and paper whose claims docs/results.md judges
    ("studies/lottery-mnist", "lottery-ticket"),
    ("studies/slimming-mnist", "network-slimming"),
    ("studies/snip-mnist", "snip"),
)
MARK = "†"  # after a percentage of the pruning's reference
HEADER = (
    "row | method | dense % | pruned % | final % | params kept % | params ≠ 0 % | MACs kept % "
    "| MACs ≠ 0 % | shrunk = masked to | record"
)
SEEDS = "row | method | seeds | final % | MACs ≠ 0 % | params ≠ 0 % | training, MACs | records"
SHORT = "row | method | final % | MACs ≠ 0 % | params ≠ 0 %"
INTRO = f"""\
Accuracy is top-1 on the test set: of the network before pruning (dense), right after it (pruned)
and as delivered (final). MACs are multiply-accumulates. A row is one run, or with ± the mean and
standard deviation over seeds. Records are in `reports/records/` of the study. Sizes are in percent
of the trained network; those marked {MARK} of the standard network, which the pruning names as its
reference: gates learn the widths of a network that is 25% wider.
"""


def results(root: Path) -> str:
    """The tables of docs/results.md, one per study with results."""
    parts = [INTRO]
    for studies, name, table in ((COMPARED, "compare", _compared), (STUDIES, "main", _table)):
        for folder, title in studies:
            path = root / folder / f"reports/tables/{name}.csv"
            if path.is_file():
                parts.append(f"## {title[0].upper()}{title[1:]}\n\n{table(_rows(path))}")
    for folder, paper in PAPERS:
        path = root / folder / f"reports/tables/{paper}-claims.md"
        if path.is_file():
            more = f"Every value beside the published one: [{folder}](../{folder}/README.md)."
            title = f"## {folder.removeprefix('studies/')}: a paper repeated"
            parts.append(f"{title}\n\n{path.read_text(encoding='utf-8')}\n{more}\n")
    return "\n".join(parts)


def main_results(root: Path) -> str:
    """The table of README.md: rows of one study, without record hashes."""
    lines = [f"| {SHORT} |", "|" + "---|" * len(SHORT.split(" | "))]
    for row in _best_first(_rows(root / SHOWN / "reports/tables/compare.csv")):
        lines.append(f"| {' | '.join(_sizes(row))} |")
    return "\n".join(lines) + "\n"


def draw_main_figure(root: Path) -> None:
    """Draw docs/images/pareto-light.svg and pareto-dark.svg from the rows of README.md."""
    rows = _rows(root / SHOWN / "reports/tables/compare.csv")
    styles = Styles([], [(row["method"], row["row"]) for row in rows])
    keys = ("macs_nonzero", "score", "macs_nonzero_std", "score_std")
    spots = []
    for row in rows:
        x, y, sx, sy = (float(row[key] or 0.0) for key in keys)
        best = "MACs non-zero" in row["front"]
        style = styles(row["method"], row["row"])
        spots.append(Spot(row["row"], style, x, y, sx, sy, best))
    for ground in ("light", "dark"):

        def draw(ax: Any, dark: bool = ground == "dark") -> Callable[[], None]:
            ax.figure.set_size_inches(9.2, 4.8)
            ax.set(xlabel="non-zero MACs (% of the dense network)", ylabel="test accuracy (%)")
            return draw_spots(ax, spots, dark=dark)

        stem = root / f"docs/images/pareto-{ground}"
        save_figure(stem, draw, formats=("svg",), dark=ground == "dark")


def replaced(text: str, block: str, name: str = "README.md") -> str:
    """`text` with `block` between the marks.

    Raises:
        ValueError: a mark is missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"{name}: the marks {BEGIN} and {END} are missing")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["status"] == "done"]


def _table(rows: Iterable[Mapping[str, str]]) -> str:
    lines = [f"| {HEADER} |", "|" + "---|" * len(HEADER.split(" | "))]
    for row in rows:
        mark = _mark(row)
        cells = [
            f"`{row['pruning']}`",
            row["method"],
            *(_number(row[f"{when}_top1"], 2) for when in ("dense", "pruned", "final")),
            *(_number(row[k], 1) + mark for k in ("params_kept", "params_nonzero")),
            *(_number(row[k], 1) + mark for k in ("macs_kept", "macs_nonzero")),
            f"{float(row['exact_masked']):.0e}" if row["exact_masked"] else "–",
            f"`{row['record'].split()[0]}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _compared(rows: Iterable[Mapping[str, str]]) -> str:
    """Means over seeds, most accurate first."""
    lines = [f"| {SEEDS} |", "|" + "---|" * len(SEEDS.split(" | "))]
    for row in _best_first(rows):
        name, method, *sizes = _sizes(row)
        records = " ".join(f"`{record[:6]}`" for record in row["record"].split())
        cells = [name, method, row["seeds"], *sizes, f"{float(row['cost']):.2g}", records]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _best_first(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    return sorted(rows, key=lambda row: -float(row["score"]))


def _sizes(row: Mapping[str, str]) -> list[str]:
    """Row, method, score and non-zero sizes."""
    sizes = (_spread(row, k, 1) + _mark(row) for k in ("macs_nonzero", "params_nonzero"))
    return [f"`{row['row']}`", row["method"], _spread(row, "score", 2), *sizes]


def _mark(row: Mapping[str, str]) -> str:
    return f" {MARK}" if row.get("of", TRAINED) != TRAINED else ""


def _spread(row: Mapping[str, str], key: str, places: int) -> str:
    mean, deviation = row[key], row[f"{key}_std"]
    return _number(mean, places) + (f" ± {_number(deviation, places)}" if deviation else "")


def _number(text: str, places: int) -> str:
    return f"{float(text):.{places}f}" if text else "–"


@click.command(help=__doc__)
def readme() -> None:
    """Rewrite README.md, docs/results.md and their figure in the working directory."""
    for name, block in (("README.md", main_results), ("docs/results.md", results)):
        path = Path(name)
        write_text(path, replaced(path.read_text(encoding="utf-8"), block(Path()), name))
    draw_main_figure(Path())
