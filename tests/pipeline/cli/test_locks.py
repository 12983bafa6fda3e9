"""dvc.lock against the files, without DVC; `tests/test_smoke.py` asks DVC as well."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline.cli.lockfile import Project
from pipeline.cli.locks import locked, locks
from pipeline.study.params.errors import ParamsError

PIPELINE = """\
vars: [{code: .}]
stages:
  train:
    foreach: ${trainings}
    do:
      cmd: python train.py ${key}
      params: [train, "trainings.${key}"]
      deps: [data/prepared, "${code}/code"]
      outs: ["artifacts/${key}"]
      metrics:
        - records/${key}.json: {cache: false}
  report:
    always_changed: true
    cmd: python report.py
"""


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of one training whose lock is fresh."""
    texts = {
        "dvc.yaml": PIPELINE,
        "params.yaml": "train: {lr: 5.0e-4}\ntrainings: {a: {seed: 0}}\n",
        ".dvcignore": "__pycache__\n",
        "code/one.py": "1",
        "code/in/two.py": "22",
        "records/a.json": "{}",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    rows = [{"md5": md5("22"), "relpath": "in/two.py"}, {"md5": md5("1"), "relpath": "one.py"}]
    stage = {
        "cmd": "python train.py a",
        "deps": [
            {"path": "./code", "hash": "md5", "md5": f"{md5(json.dumps(rows))}.dir",
             "size": 3, "nfiles": 2},
            {"path": "data/prepared", "hash": "md5", "md5": "d.dir"},
        ],
        "params": {"params.yaml": {"train": {"lr": 0.0005}, "trainings.a": {"seed": 0}}},
        "outs": [
            {"path": "artifacts/a", "hash": "md5", "md5": "w.dir"},
            {"path": "records/a.json", "hash": "md5", "md5": md5("{}")},
        ],
    }  # fmt: skip
    with (tmp_path / "dvc.lock").open("w") as file:
        YAML().dump({"schema": "2.0", "stages": {"train@a": stage}}, file)
    return tmp_path


def said(folder: Path, *options: str) -> str:
    return CliRunner().invoke(locks, [str(folder), *options]).output.replace(str(folder), "F")


def test_a_fresh_lock(folder: Path) -> None:
    (folder / "code/__pycache__").mkdir()
    (folder / "code/__pycache__/one.pyc").write_text("compiled")
    assert said(folder) == "F: fresh, 1 stages\n"


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("params.yaml", "train: {lr: 0.1}\ntrainings: {a: {seed: 0}}\n",
         "params.yaml: train"),
        ("params.yaml", "train: {lr: 5e-4}\ntrainings: {a: {seed: 1}}\n",
         "params.yaml: trainings.a"),
        ("records/a.json", "{1}", "records/a.json"),
        ("dvc.yaml", PIPELINE.replace("data/prepared", "data/other"), "data/other, data/prepared"),
    ],
)  # fmt: skip
def test_what_is_refused(folder: Path, file: str, text: str, why: str) -> None:
    before = (folder / "dvc.lock").read_bytes()
    (folder / file).write_text(text)
    assert f"F: train@a: {why}\n" in said(folder, "--accept")
    assert (folder / "dvc.lock").read_bytes() == before


def test_code_is_accepted_and_nothing_else_moves(folder: Path) -> None:
    before = (folder / "dvc.lock").read_text()
    (folder / "code/one.py").write_text("10")
    assert "F: train@a: ./code\n" in said(folder)
    assert "F: 1 stages accepted\n" in said(folder, "--accept")
    after = (folder / "dvc.lock").read_text()
    lines = zip(before.splitlines(), after.splitlines(), strict=True)
    changed = [new.split()[0] for old, new in lines if old != new]
    assert changed == ["md5:", "size:"]
    assert said(folder) == "F: fresh, 1 stages\n"


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ("trainings: [\n", "params.yaml:2: not valid YAML: "),
        ("train: {}\n", "params.yaml: trainings: missing, and dvc.yaml reads it"),
        ("train: {}\ntrainings: {a: {}}\n", "params.yaml: a: item.seed: missing, and dvc.yaml"),
    ],
)
def test_params_that_dvc_could_not_read(folder: Path, params: str, why: str) -> None:
    (folder / "dvc.yaml").write_text(PIPELINE.replace("data/prepared", '"data/${item.seed}"'))
    (folder / "params.yaml").write_text(params)
    with pytest.raises(ParamsError, match=f"^{folder}/{why}"):
        Project(folder).stale()


@pytest.mark.parametrize("folder_with_lock", locked(), ids=lambda path: path.name)
def test_every_lock_is_fresh(folder_with_lock: Path) -> None:
    """What is in git is what `dvc repro` would make of it."""
    stale = Project(folder_with_lock).stale()
    assert not stale, f"{len(stale)} stages, e.g. {stale[0]}: see `espalier locks --help`"
