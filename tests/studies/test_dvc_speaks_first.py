"""What is wrong with params.yaml, as DVC, `espalier` and a stage say it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import study

MODEL_OF_H = "  h: {model: {family: small, name: resnet8, width: 4}, "
PRUNINGS = study.PARAMS[study.PARAMS.index("prunings:") : study.PARAMS.index("sweep:")]
FAULTS = {
    "no `sweep.trainings`": {"  trainings: [a]\n": ""},
    "a training without `model`": {MODEL_OF_H: "  h: {"},
    "a pruning without `training`": {"h-zeros: {training: h, ": "h-zeros: {"},
    "nothing below `prunings:`": {PRUNINGS: "prunings:\n"},
    "broken YAML": {"train:": "train: :"},
}
COMMANDS = ("pipeline.cli check", "pipeline.cli run", "stages.report")


@pytest.mark.slow
def test_the_table_of_the_page_on_dvc_is_true(tmp_path: Path) -> None:
    page = (study.REPOSITORY / "docs/dvc.md").read_text()
    rows = re.findall(r"^\| (.+) \| `([^|]+)` \| `(params.yaml:.+)` \|$", page, re.M)
    assert [row[0] for row in rows] == list(FAULTS)
    folder = study.create(tmp_path / "study")
    for fault, dvc, ours in rows:
        study.edit(folder, FAULTS[fault])
        assert dvc in study.run(folder, "dvc", "repro", check=False)
        for command in COMMANDS:
            said = study.run(folder, "python", "-m", *command.split(), check=False)
            assert said.startswith(f"error: {ours}")
            assert said.count("\n") == 1
        (folder / "params.yaml").write_text(study.PARAMS)
    study.edit(folder, {"root: .\n": ""})  # has a default that dvc.yaml knows too
    assert "valid" in study.run(folder, "python", "-m", "pipeline.cli", "check")
