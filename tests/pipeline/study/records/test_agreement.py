"""Records, dvc.lock and params.yaml agree, or the report fails with a one-line error."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.study import paths
from pipeline.study.params.load import load_params
from pipeline.study.records.agreement import _unstretch, require_agreement
from pipeline.study.records.data import DataRecord
from pipeline.study.records.record import TrainRecord, read_record, write_record

ROOT = Path(__file__).resolve().parents[4]
STUDIES = sorted(
    p.parent.relative_to(ROOT).as_posix()
    for p in (ROOT / "params.yaml", *ROOT.glob("studies/**/params.yaml"))
    if (p.parent / paths.RECORDS).is_dir()
)


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_agrees(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / study)
    require_agreement(load_params())
    data = read_record(DataRecord, paths.DATA_RECORD)
    for path in paths.RECORDS.glob("train/*.json"):
        assert read_record(TrainRecord, path).parents["data"] == data.card_sha


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default study's params, lock and records."""
    shutil.copytree(ROOT / paths.RECORDS, tmp_path / paths.RECORDS)
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


EDITS = [
    ("  optimizer: {name: sgd, lr: 0.1,", "  optimizer: {name: sgd, lr: 0.2,",
     "train/resnet8-dense-s0.json: recipe.optimizer.lr: 0.1 in the record, 0.2 in params.yaml"),
    ("k_frac: 0.01", "k_frac: 0.02", "train/resnet8-sfw-s0.json: method_params.k_frac: 0.01 in"),
    ("  resnet8-hspg-s0: {model: {family: small, name: resnet8},",
     "  resnet8-hspg-s0: {model: {family: small, name: resnet8, width: 8},",
     "train/resnet8-hspg-s0.json: model_args.width: nothing in the record, 8 in params.yaml"),
    ("resnet8-dense-s0, target: {rule: fraction, value: 0.9}}",
     "resnet8-dense-s0, target: {rule: fraction, value: 0.8}}",
     "evaluate/resnet8-dense-s0-p90.json: target.value: 0.9 in the record, 0.8 in params.yaml"),
    ("finetune: {epochs: 5}", "finetune: {epochs: 6}",
     "evaluate/resnet8-dense-s0-p90-ft.json: finetune.epochs: 5 in the record, 6 in"),
    ("[0.5, 0.8, 0.9, 0.95]", "[0.5, 0.8, 0.9]", "sweep/resnet8-dense-s0.json: sparsities: "),
    ("  name: digits\n", "  name: mnist\n", "data.json: data.name: 'digits' in the record"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "told"), EDITS)
def test_a_record_of_other_settings_is_refused(study: Path, old: str, new: str, told: str) -> None:
    require_agreement(load_params())
    params = study / "params.yaml"
    assert old in params.read_text()
    params.write_text(params.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"^reports/records/") as caught:
        require_agreement(load_params())
    assert str(caught.value).startswith(f"reports/records/{told}")
    assert "dvc repro" in str(caught.value)


def test_a_retraining_that_dvc_sees_no_reason_for_has_a_way_out(study: Path) -> None:
    """It inherits `train`; a training that an edit leaves as it was gives DVC none."""
    params = study / "params.yaml"
    old = "  optimizer: {name: sgd, lr: 0.1,"
    params.write_text(params.read_text().replace(old, f"  checkpoint_steps: 7\n{old}", 1))
    for path in (paths.RECORDS / "train").glob("*.json"):  # as `dvc repro` would leave them
        record = read_record(TrainRecord, path)
        recipe = {**record.recipe, "checkpoint_steps": 7}
        write_record(path, replace(record, recipe=recipe))
    (study / "dvc.lock").unlink()
    told = r"finetune.checkpoint_steps: 0 in the record, 7 .*--force --single-item finetune@\S+` f"
    with pytest.raises(ValueError, match=told):
        require_agreement(load_params())


@pytest.mark.parametrize(
    ("milestones", "same"),
    [((80, 120), True), ((80, 121), False), ((80,), False), ((80, 140), False)],
)
def test_a_stretched_schedule_is_compared(milestones: tuple[int, ...], same: bool) -> None:
    """160 epochs, 80 and 120, are 363 (of 2.27 times the budget), 182 and 272."""
    told = {"epochs": 363, "schedule": {"milestones": [182, 272], "step_size": 2, "gamma": 0.1}}
    schedule = {"milestones": list(milestones), "step_size": 1, "gamma": 0.1}
    wanted = {"epochs": 160, "schedule": schedule}
    _unstretch(told, wanted)
    assert (told == wanted) is same


@pytest.mark.parametrize("kind", ["train", "evaluate", "sweep"])
def test_a_digit_changed_in_a_record_is_noticed(study: Path, kind: str) -> None:
    path = sorted((paths.RECORDS / kind).glob("*.json"))[0]
    text = path.read_text()
    at = text.index("0.") + 2
    path.write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}")
    with pytest.raises(ValueError, match="not the file that dvc.lock lists") as caught:
        require_agreement(load_params())
    assert str(caught.value).startswith(str(path))


def test_other_data_than_that_of_the_trainings_is_refused(study: Path) -> None:
    path = paths.DATA_RECORD
    card = read_record(DataRecord, path).card_sha
    path.write_text(path.read_text().replace(card, hashlib.sha256(b"other").hexdigest()))
    (study / "dvc.lock").unlink()
    with pytest.raises(ValueError, match=r"train/.*json: parents.data: .* Run `dvc repro train@"):
        require_agreement(load_params())
