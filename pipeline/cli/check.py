"""Validate the study in this folder, and show what would run again and its approximate cost.

A training costs epochs x examples x MACs of the dense network x 3 (a backward pass costs two
forward passes). A retraining costs at most that.

    espalier check --write-docs     rewrites docs/params.md and docs/params.schema.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import click

from pipeline.data.info import DatasetInfo
from pipeline.files import read_json, write_text
from pipeline.study import paths
from pipeline.study.execution import checked
from pipeline.study.params.load import Params, ParamsError, load_params, load_parts
from pipeline.study.params.schema import MatchCost
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.cost import PASSES
from pipeline.study.records.counts import count_network
from pipeline.study.records.data import DataRecord, data_record
from pipeline.study.records.record import read_record

ALWAYS = ("check", "report")  # stages that every `dvc repro` runs
PAGE, SCHEMA = Path("docs/params.md"), Path("docs/params.schema.json")


def changed_stages() -> list[str] | None:
    """Stages that DVC reports as changed, without those after them; None outside a DVC project.

    Raises:
        RuntimeError: DVC failed; says why.
    """
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    said = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        env=os.environ | {"PATH": programs},
        capture_output=True,
        text=True,
        check=False,
    )
    if "not inside of a DVC repository" in said.stderr or "No module named dvc" in said.stderr:
        return None
    if said.returncode:
        raise RuntimeError(f"dvc status failed: {said.stderr.strip()}")
    return [name for name in json.loads(said.stdout) if name not in ALWAYS]


def following(params: Params, changed: list[str]) -> list[str]:
    """The changed stages and all that depend on them, in pipeline order."""
    file, run = params.file, set(changed)
    everything = "prepare-data" in run
    trainings = [k for k in file.trainings if everything or f"train@{k}" in run]
    found = ["prepare-data"] * everything + [f"train@{k}" for k in trainings]
    for key, pruning in file.prunings.items():
        again = pruning.training in trainings
        for stage in ("prune", "finetune", "evaluate"):
            again = again or f"{stage}@{key}" in run
            found += [f"{stage}@{key}"] * again
    for key in file.sweep.trainings:
        found += [f"sweep@{key}"] * (key in trainings or f"sweep@{key}" in run)
    for key, pair in file.connect.pairs.items():
        again = pair.one.training in trainings or pair.other.training in trainings
        found += [f"connect@{key}"] * (again or f"connect@{key}" in run)
    return found


def known_data() -> DataRecord | None:
    """The study's data, from the prepared data or its record; None if never prepared."""
    if paths.CARD.is_file():
        return data_record(read_json(paths.CARD), "")
    return read_record(DataRecord, paths.DATA_RECORD) if paths.DATA_RECORD.is_file() else None


def epochs_of(params: Params, stage: str) -> tuple[str, int] | None:
    """The training whose network a stage trains, and its epochs; None if it trains no network."""
    name, _, key = stage.partition("@")
    if name == "train":
        return key, sum(phase.epochs for phase in params.phases(key))
    if name != "finetune":
        return None
    wanted, training = params.retraining(key).epochs, params.pruning(key).training
    if not isinstance(wanted, MatchCost):
        return training, wanted
    return training, params.retraining_recipe(key).epochs


def work(params: Params, stages: list[str], data: DataRecord) -> Iterator[tuple[str, int, float]]:
    """Stage, epochs and multiply-accumulates of every stage that trains."""

    info = DatasetInfo(data.name, tuple(data.input_shape), data.num_classes)
    macs: dict[str, int] = {}  # by network: many trainings share one
    for stage in stages:
        trained = epochs_of(params, stage)
        if trained is not None and trained[1]:
            key, epochs = trained
            network = NetworkSpec.of(params.training(key).model, info)
            if (name := str(network)) not in macs:
                macs[name] = count_network(network, network.build()).macs
            yield stage, epochs, float(PASSES * epochs * data.splits["train"] * macs[name])


def told(params: Params) -> Iterator[str]:
    """The output of the command, by line: of the study, then of its parts."""
    for folder, part in load_parts(params).items():
        with chdir(folder):
            lines = list(_told(part))
        yield from lines


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _told(params: Params) -> Iterator[str]:
    file = params.file
    counts = {
        "training": len(file.trainings),
        "pruning": len(file.prunings),
        "sweep": len(file.sweep.trainings),
        "pair": len(file.connect.pairs),
        "part": len(file.parts),
    }
    has = ", ".join(_several(n, what) for what, n in counts.items() if n)
    yield f"{params.path}: valid ({has or 'nothing to train'})"
    checked.confirm()  # or `dvc status` would call prepare-data changed
    changed = changed_stages()
    if changed is None:
        yield "no DVC project here: what would run again is not known"
        changed = ["prepare-data"]
    stages = following(params, changed)
    if not stages:
        yield "up to date: `dvc repro` would only report"
        return
    yield f"`dvc repro` would run {_several(len(stages), 'stage')}: {_summary(stages)}"
    data = known_data()
    if data is None:
        yield "their cost is known after `dvc repro prepare-data`"
        return
    rows = list(work(params, stages, data))
    for stage, epochs, cost in sorted(rows, key=lambda row: -row[2])[:20]:
        yield f"  {stage:<44} {epochs:>5} epochs  {cost:9.2e} MACs"
    if len(rows) > 20:
        yield f"  and {len(rows) - 20} smaller ones"
    if rows:
        yield f"together about {sum(row[2] for row in rows):.2e} MACs of training"


def _summary(stages: list[str]) -> str:
    names = list(dict.fromkeys(stage.partition("@")[0] for stage in stages))
    counted = {n: sum(s.partition("@")[0] == n for s in stages) for n in names}
    return ", ".join(f"{n} x {c}" if c > 1 else n for n, c in counted.items())


def _write(path: Path, text: str) -> None:
    write_text(path, text)
    click.echo(f"wrote {path}")


@click.command(help=__doc__)
@click.option("--write-docs", is_flag=True, help="Rewrite the reference page and the JSON schema.")
def check(write_docs: bool) -> None:
    if write_docs:
        from pipeline.cli.params_page import json_schema, page

        _write(PAGE, page())
        _write(SCHEMA, json.dumps(json_schema(), indent=1, sort_keys=True) + "\n")
        return
    try:
        params = load_params()
    except ParamsError as error:
        for line in error.lines[1:]:
            click.echo(f"error: {line}", err=True)
        raise ParamsError(error.lines[0]) from error
    for line in told(params):
        click.echo(line)
