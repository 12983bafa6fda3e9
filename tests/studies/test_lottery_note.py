"""The note on the scale of the inputs in studies/lottery-mnist says what the records say."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

from reports.build.papers.published import FOLDER, load_paper

STUDIES = Path(__file__).resolve().parents[2] / "studies"
STUDY = STUDIES / "lottery-mnist"
KEYS = ("w1000", "w800", "w641", "w513", "w411", "w329", "w263", "w211")


def ours(study: str, key: str) -> list[str]:
    """Mean over the trials: iteration and accuracy of the early stop, accuracy at the end."""
    files = sorted((STUDIES / study).rglob(f"reports/records/evaluate/ticket-s?-{key}.json"))
    assert len(files) == 5
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    early = [record["early_stop"] for record in records]
    return [
        f"{fmean(e['iteration'] for e in early):,.0f}",
        f"{fmean(e['test']['top1'] for e in early):.2f}",
        f"{fmean(r['final']['top1'] for r in records):.2f}",
    ]


def expected() -> list[str]:
    """One row per density: published, inputs in [0, 1], standardised inputs."""
    paper = load_paper(FOLDER / "lottery-ticket.yaml")
    early, end = (paper.tables[f"figure4-{when}"].rows for when in ("early", "end"))
    rows = []
    for key, at, last in zip(KEYS, early, end, strict=False):
        values = at.values | {"top1": last.values["top1"]}
        told = [f"{values['weights'].value:.2f}", f"{values['early_iteration'].value:,.0f}"]
        told += [f"{values[k].value:.2f}" for k in ("early_top1", "top1")]
        told += ours("lottery-mnist", key) + ours("lottery-mnist-standardised", key)
        rows.append(f"| {' | '.join(told)} |")
    return rows


def test_the_note_on_inputs() -> None:
    lines = (STUDY / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(expected()) == len(KEYS)
    assert [row for row in expected() if row not in lines] == []
