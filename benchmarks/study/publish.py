"""What publishing a study to MLflow costs: CPU seconds of a report's `publish` per training.

    python -m benchmarks.study.publish [--sizes 100,1000]

The records are copies of one of the default study under other names and seeds; each size goes into
a database of its own. The second time everything is there already.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.study.scale import show
from pipeline.study.records.record import TrainRecord, read_record, write_record
from pipeline.study.tracking.publish import publish
from pipeline.study.tracking.study_runs import Entry, Study

RECORD = Path(__file__).resolve().parents[2] / "reports/records/train/resnet8-dense-s0.json"


def cost(count: int) -> dict[str, float]:
    """CPU seconds per training, and the size of the database, in the working folder."""
    record = read_record(TrainRecord, RECORD)
    entries = []
    for n in range(count):
        path = Path(f"t{n:04}.json")
        write_record(path, replace(record, training=path.stem, seed=n))
        entries.append(Entry(path.stem, path.stem, path))
    found: dict[str, float] = {"trainings": count}
    for name in ("first", "second"):
        began = time.process_time()
        publish(Study("scale", entries))
        found[f"{name} per training"] = (time.process_time() - began) / count
    found["database bytes per training"] = Path("mlflow.db").stat().st_size / count
    found["record bytes"] = RECORD.stat().st_size
    return found


@click.command(help=__doc__)
@click.option("--sizes", default="100,1000")
def main(sizes: str) -> None:
    rows: list[dict[str, float]] = []
    for size in map(int, sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            rows.append(cost(size))
            os.chdir("/")
        show(rows)


if __name__ == "__main__":
    main()
