"""Masks at initialisation, published beside ours: the tables of studies/synflow-masks.

    python -m benchmarks.mask_tables

Rewrites comparison.csv and the tables in README.md there, from published.csv and ours.csv.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from statistics import mean, median

from benchmarks.initial_masks import (
    HOME,
    LAYERS,
    LOG10,
    NEED_DATA,
    Case,
    Counts,
    csv_text,
    read_ours,
)
from pipeline.files import write_text

SIZES = (1728, 36864, 73728, 147456, 294912, 589824, 589824, 1179648, *[2359296] * 5, 51200)
SHOWN = (1.0, 2.0, 3.0)
ENOUGH = 300  # weights: layers with fewer are in comparison.csv, not in the summary
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def read_published() -> dict[tuple[str, float], list[Counts]]:
    """Criterion and log10 of the compression -> the counts of three runs."""
    found: dict[tuple[str, float], list[Counts]] = {}
    for row in csv.DictReader((HOME / "published.csv").read_text().splitlines()):
        key = row["criterion"], float(row["log10_compression"])
        found.setdefault(key, []).append(tuple(int(row[layer]) for layer in LAYERS))
    return found


def inside(ours: Sequence[Counts], published: Sequence[Counts]) -> list[bool]:
    """Per run of ours and layer: whether it is within the published runs. Half of them are, if
    both are draws of one distribution and there are three published runs. Layers with few weights
    are left out: their counts tie."""
    return [
        min(values) <= mine <= max(values)
        for run in ours
        for mine, *values in zip(run, *published, strict=True)
        if mean([mine, *values]) >= ENOUGH
    ]


def grouped(found: Mapping[Case, Counts]) -> dict[tuple[str, str], dict[float, list[Counts]]]:
    """(criterion, how it was drawn) -> log10 of the compression -> counts of our runs."""
    groups: dict[tuple[str, str], dict[float, list[Counts]]] = {}
    for case in sorted(found):
        how = "" if case.criterion not in NEED_DATA else (
            f"{case.rounds} round{'s' * (case.rounds > 1)}, {case.images} images, removed weights "
            f"{case.removed}"
        )  # fmt: skip
        group = groups.setdefault((case.criterion, how), {})
        group.setdefault(case.log10_compression, []).append(found[case])
    return groups


def critical(runs: Mapping[float, Sequence[Counts]]) -> str:
    """The largest compression of each run at which no layer is empty, if all were drawn."""
    if len(runs) < len(LOG10):
        return "not run"
    number = min(len(group) for group in runs.values())
    return ", ".join(
        f"{max((c for c in sorted(runs) if min(runs[c][run])), default=0.0):g}"
        for run in range(number)
    )


def summary() -> str:
    """One row per criterion."""
    published, rows = read_published(), []
    for (criterion, how), runs in grouped(read_ours()).items():
        theirs = {c: published[criterion, c] for c in runs}
        hits = [hit for c, group in runs.items() for hit in inside(group, theirs[c])]
        apart = [
            100.0 * (mean(a) / mean(b) - 1.0)
            for c, group in runs.items()
            for a, b in zip(zip(*group, strict=True), zip(*theirs[c], strict=True), strict=True)
            if mean([*a, *b]) >= ENOUGH
        ]
        drawn = sum(map(len, runs.values()))
        name = f"{criterion} ({how})" if how else criterion
        every = {c: published[criterion, c] for c in LOG10}
        rows.append((
            name, len(runs), drawn, f"{mean(apart):+.2f}", f"{median(map(abs, apart)):.2f}",
            f"{100.0 * mean(hits):.0f}", critical(every), critical(runs),
        ))  # fmt: skip
    head = ("criterion", "ratios", "masks", "mean difference (%)", "median distance (%)",
            "inside (%)", "critical: published", "critical: ours")  # fmt: skip
    return markdown(head, rows)


def layers_table(criterion: str, how: str, runs: Mapping[float, Sequence[Counts]]) -> str:
    """Weights kept in percent per layer: published mean [lowest, highest], ours, difference."""
    published, chosen = read_published(), [c for c in SHOWN if c in runs]
    head = ["layer"]
    for c in chosen:
        head += [f"10^{c:g}: published", "ours", "difference"]
    rows = []
    for i, layer in enumerate(LAYERS):
        row = [layer]
        for c in chosen:
            theirs = [100.0 * run[i] / SIZES[i] for run in published[criterion, c]]
            ours = mean(100.0 * run[i] / SIZES[i] for run in runs[c])
            row += [f"{mean(theirs):.4g} [{min(theirs):.4g}, {max(theirs):.4g}]", f"{ours:.4g}",
                    f"{ours - mean(theirs):+.2g}"]  # fmt: skip
        rows.append(row)
    title = f"{criterion}: {how}" if how else criterion
    number = max(len(runs[c]) for c in chosen)
    return f"### {title}\n\nOurs: {number} run(s).\n\n{markdown(head, rows)}"


def comparison() -> str:
    """Every compression and layer: the CSV of the study."""
    published, rows = read_published(), []
    for (criterion, how), runs in grouped(read_ours()).items():
        for c, group in runs.items():
            for i, layer in enumerate(LAYERS):
                theirs, ours = (
                    [run[i] for run in found] for found in (published[criterion, c], group)
                )
                rows.append((
                    criterion, how, f"{c:g}", layer, SIZES[i], f"{mean(theirs):.6g}", min(theirs),
                    max(theirs), len(ours), f"{mean(ours):.6g}", min(ours), max(ours),
                    f"{mean(ours) - mean(theirs):.6g}",
                ))  # fmt: skip
    head = ("criterion", "how", "log10_compression", "layer", "weights", "published", "lowest",
            "highest", "runs", "ours", "ours_lowest", "ours_highest", "difference")  # fmt: skip
    return csv_text(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def readme(text: str) -> str:
    """`text` with the tables between its marks."""
    groups = grouped(read_ours())
    parts = [summary(), *(
        layers_table(*name, runs) for name, runs in groups.items() if set(SHOWN) & set(runs)
    )]  # fmt: skip
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{after}"


def main() -> None:
    """Write comparison.csv and the tables of README.md."""
    write_text(HOME / "comparison.csv", comparison())
    page = HOME / "README.md"
    write_text(page, readme(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
