"""A params file that validates also runs, so keys that dvc.yaml reads must be present."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.cli.study import files
from pipeline.study.params.load import ParamsError, load_params

ROOT = Path(__file__).resolve().parents[4]
COMPLETE = """
study: t
root: .
data: {name: digits, val_size: 200}
train: {epochs: 6}
finetune: {epochs: 0}
evaluate: {batch_size: 256}
methods: {dense: {}}
trainings:
  a: {model: {family: small, name: resnet8}, method: dense}
  b: {model: {family: small, name: resnet8}, method: dense, seed: 1}
prunings:
  p: {training: a, target: {rule: fraction, value: 0.5}}
sweep:
  trainings: [a]
  sparsities: [0.5]
  ranked: [weights]
  scopes: [global]
  recalibration_batches: 20
connect:
  pairs: {l: {one: {training: a}, other: {training: b}}}
  points: 11
  recalibration_batches: 50
"""


def read_by_dvc() -> list[str]:
    """Every key of params.yaml that an entry of dvc.yaml reads by name."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    keys = {k for e in stages.values() for k in e.get("do", e).get("params", ()) if "${" not in k}
    return sorted(keys)


def without(key: str) -> str:
    content: Any = YAML(typ="safe").load(COMPLETE)
    block = content
    *above, last = key.split(".")
    for part in above:
        block = block[part]
    del block[last]
    out = io.StringIO()
    YAML().dump(content, out)
    return out.getvalue()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    return tmp_path / "params.yaml"


def test_the_complete_file_is_valid(study: Path) -> None:
    study.write_text(COMPLETE)
    load_params(study)


@pytest.mark.parametrize("key", read_by_dvc())
def test_a_key_that_dvc_reads_is_required(key: str, study: Path) -> None:
    study.write_text(without(key))
    with pytest.raises(ParamsError) as caught:
        load_params(study)
    told = str(caught.value)
    assert told.startswith(f"{study}: {key}")
    assert ": missing" in told
    assert "\n" not in told


def test_the_way_out_is_the_default(study: Path) -> None:
    study.write_text(without("sweep.scopes"))
    with pytest.raises(ParamsError, match=r"stage sweep\); add its default, `scopes: \[global\]`"):
        load_params(study)
    study.write_text(without("finetune"))
    with pytest.raises(ParamsError, match=r"`finetune: \{epochs: 0, start_from: current"):
        load_params(study)


def test_a_stage_without_an_instance_reads_nothing(study: Path) -> None:
    text = COMPLETE[: COMPLETE.index("connect:")].replace("trainings: [a]", "trainings: []")
    for line in ("ranked: [weights]", "scopes: [global]", "recalibration_batches: 20"):
        text = text.replace(f"  {line}\n", "")
    study.write_text(text)
    load_params(study)


@pytest.mark.parametrize(
    ("root", "told"), [("", "missing"), ("root: ../..\n", "'../..' is not where the code is")]
)
def test_root_is_where_dvc_takes_the_code_from(root: str, told: str, study: Path) -> None:
    copy = files()["dvc.yaml"]
    study.write_text(COMPLETE.replace("root: .\n", ""))
    load_params(study)  # the default is right beside the code
    study.with_name("dvc.yaml").write_text(copy)
    study.write_text(COMPLETE.replace("root: .\n", root))
    with pytest.raises(ParamsError, match=f"root: {re.escape(told)}; .*: `root: code`$"):
        load_params(study)


def test_without_a_pipeline_the_defaults_hold(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(without("evaluate"))
    assert load_params(path).file.evaluate.batch_size == 256
