"""The results in README.md, written from the tables that the tracked runs made.

`espalier readme` rewrites what stands between the marks; a test fails when README.md and
the tables differ.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from pipeline.files import write_text
from reports.build.table import TRAINED

BEGIN, END = "<!-- results -->", "<!-- /results -->"
STUDIES = (
    (".", "scikit-learn's digits, the default study (`make repro`)"),
    ("studies/resnet-cifar10", "trained CIFAR-10 ResNets, imported, pruned on real CIFAR-10"),
)
COMPARED = (
    ("studies/families-resnet20", "ResNet20 on the whole of real CIFAR-10, ten epochs, one seed"),
    ("studies/families-cifar10", "every family at one budget, 10,000 real CIFAR-10 images"),
)
MARK = "†"  # behind a percentage that counts from the pruning's reference
HEADER = (
    "row | method | dense % | pruned % | final % | params kept % | params ≠ 0 % | MACs kept % "
    "| MACs ≠ 0 % | shrunk = masked to | record"
)
SEEDS = "row | method | seeds | final % | MACs ≠ 0 % | params ≠ 0 % | training, MACs | records"


def results(root: Path) -> str:
    """The block of README.md: one table per study that has one."""
    parts = []
    for folder, title in COMPARED:
        path = root / folder / "reports/tables/compare.csv"
        if path.is_file():
            parts.append(f"### {title}\n\n{_compared(_rows(path))}")
    for folder, title in STUDIES:
        path = root / folder / "reports/tables/main.csv"
        if path.is_file():
            parts.append(f"### {title}\n\n{_table(_rows(path))}")
    intro = (
        "Accuracy is top-1 on the test set, measured once: of the network before pruning, right "
        "after it, and as delivered. MACs are multiply-accumulates. Each row is one tracked run, "
        "or with ± the mean over one per seed; its records are in `reports/records/` of the study "
        "(`dense`: those of the prunings it was measured in). Sizes are in percent of the trained "
        f"network; those marked {MARK} of the standard one, which the pruning names as its "
        "reference: gates learn the widths of a network a quarter wider, to leave 50 % or, "
        "where the row says macs30, 70 % of the standard one's MACs.\n"
    )
    return f"## Results\n\n{intro}\n" + "\n".join(parts)


def replaced(text: str, block: str) -> str:
    """`text` with `block` between the marks.

    Raises:
        ValueError: a mark is missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md: the marks {BEGIN} and {END} are not there")
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
    """Means over seeds, the most accurate first."""
    lines = [f"| {SEEDS} |", "|" + "---|" * len(SEEDS.split(" | "))]
    for row in sorted(rows, key=lambda r: -float(r["score"])):
        mark = _mark(row)
        cells = [
            f"`{row['row']}`",
            row["method"],
            row["seeds"],
            _spread(row, "score", 2),
            *(_spread(row, key, 1) + mark for key in ("macs_nonzero", "params_nonzero")),
            f"{float(row['cost']):.2g}",
            " ".join(f"`{record[:6]}`" for record in row["record"].split()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mark(row: Mapping[str, str]) -> str:
    return f" {MARK}" if row.get("of", TRAINED) != TRAINED else ""


def _spread(row: Mapping[str, str], key: str, places: int) -> str:
    mean, deviation = row[key], row[f"{key}_std"]
    return _number(mean, places) + (f" ± {_number(deviation, places)}" if deviation else "")


def _number(text: str, places: int) -> str:
    return f"{float(text):.{places}f}" if text else "–"


@click.command(help=__doc__)
def readme() -> None:
    """Rewrite README.md of the working directory."""
    path = Path("README.md")
    text = path.read_text(encoding="utf-8")
    write_text(path, replaced(text, results(Path())))
