"""studies/oto-squad: the authors' settings, and `dvc repro` from questions to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from methods.hspg import PRESETS, HSPGConfig
from pipeline.study.params.load import load_params
from tests import squad_dry_run, study
from tests.squad_world import TINY

ROW = "bert-hspg-u50-s0-zeros"


@pytest.mark.parametrize("percent", [10, 30, 50, 70, 90])
def test_rows_of_hspg_are_the_presets(percent: int) -> None:
    params = load_params(study.REPOSITORY / "studies/oto-squad/params.yaml")
    preset, key = PRESETS[f"bert-squad-{percent}"], f"bert-hspg-u{percent}-s0"
    assert params.method_config(key) == HSPGConfig(**preset["method"])
    assert params.file.trainings[key].model.args["attention"] == "query_key"
    recipe = params.recipe(key).model_dump()
    for name, value in preset["train"].items():
        found = {k: recipe[name][k] for k in value} if isinstance(value, dict) else recipe[name]
        assert found == value, name
    assert recipe["schedule"]["name"] == "multistep"
    assert recipe["optimizer"]["name"] == "sgd"


@pytest.mark.slow
def test_a_row_of_hspg_runs_from_questions_to_the_table(tmp_path: Path) -> None:
    home = squad_dry_run.place(tmp_path, [ROW])
    stages = squad_dry_run.repro(tmp_path)
    own = [f"{stage}@{ROW}" for stage in ("prune", "finetune", "evaluate")]
    assert stages == ["prepare-data", "train@bert-hspg-u50-s0", *own, "report"]
    record = json.loads((home / f"reports/records/evaluate/{ROW}.json").read_text())
    assert record["exactness"]["dense"]["max_rel"] < 1e-5
    assert record["final"]["f1"] == pytest.approx(record["dense"]["f1"])
    bound = 0.5 * 2 * TINY["intermediate"]  # of the inner features of both layers
    units = 2 * (TINY["hidden"] // TINY["heads"] + TINY["intermediate"])
    assert record["group_sparsity"] == pytest.approx(bound / units)
    assert record["counts"]["params_kept"] < record["counts"]["params_dense"]
    training = json.loads((home / "reports/records/train/bert-hspg-u50-s0.json").read_text())
    phases = [point["phase"] for point in training["curve"]]
    assert (phases.count("warmup"), phases.count("half-space")) == (2, 16)
    rates = [point["values"]["lr"] for point in training["curve"]]
    assert rates[9] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.01)
    assert ROW in (home / "reports/tables/main.md").read_text()
