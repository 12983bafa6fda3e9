"""Records: canonical bytes, stable hashes, and refusal of what is not a record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.study.records.record import (
    Counts,
    CurvePoint,
    EvalRecord,
    TrainRecord,
    canonical,
    from_json,
    read_record,
    sha,
    to_json,
    write_record,
)
from pipeline.study.records.states import KeptState
from pipeline.study.records.sweep import SweepPoint, SweepRecord
from tests.reports.samples import check_golden, eval_record, sweep_record, train_record

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TRAINING = train_record()
RECORDS = [TRAINING, eval_record(TRAINING), sweep_record(TRAINING)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.kind)
def test_bytes_are_golden_and_read_back(record):
    text = to_json(record)
    check_golden(f"records/{record.kind}.json", text)
    assert to_json(from_json(type(record), text)) == text


def test_hashes_are_golden():
    """If one of these changes, published runs and tables cite hashes that no longer exist."""
    assert [sha(r) for r in RECORDS] == [
        "41e9aa6277069ff77566d8a97ebff6fe2cd6e9c3e4858c527206fc128d284bd1",
        "30680132634cc12cb6dfe4398d2c594134f071806cdad67aa5140f2d07588cb1",
        "2ec54e1d1dc64ee937c6d26dccba4aae9040af1159d03001d5a6a20531554e66",
    ]


def test_hash_is_that_of_the_file(tmp_path):
    path = tmp_path / "deep" / "r.json"
    told = write_record(path, TRAINING)
    assert told == sha(TRAINING) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha(read_record(TrainRecord, path)) == told


@given(st.dictionaries(st.text(max_size=5), FINITE, max_size=4))
def test_any_finite_number_survives(values):
    record = replace(TRAINING, curve=(CurvePoint(0, 1, "train", values),))
    back = from_json(TrainRecord, to_json(record))
    assert back.curve[0].values == values
    assert sha(back) == sha(record)


def test_int_where_a_float_belongs_gives_the_same_bytes():
    whole = replace(eval_record(TRAINING), weight_sparsity=0)
    assert to_json(whole) == to_json(replace(whole, weight_sparsity=0.0))


def test_key_order_does_not_matter():
    turned = dict(reversed(list(TRAINING.recipe.items())))
    assert sha(replace(TRAINING, recipe=turned)) == sha(TRAINING)


def test_kept_states_are_in_the_bytes_only_where_there_are_some():
    assert "kept" not in json.loads(to_json(TRAINING))
    kept = replace(TRAINING, kept={"best-2": KeptState(2, {"top1": 90.5})})
    told = json.loads(to_json(kept))["kept"]
    assert told == {"best-2": {"epochs": 2, "validation": {"top1": 90.5}}}
    assert from_json(TrainRecord, to_json(kept)) == kept
    assert sha(kept) != sha(TRAINING)
    with pytest.raises(ValueError, match="edited by hand"):
        from_json(TrainRecord, to_json(TRAINING).replace('"kind"', '"kept": null,\n  "kind"'))


def test_parents_are_in_the_hash():
    other = replace(TRAINING, parents={"data": "0" * 64})
    assert sha(eval_record(other)) != sha(eval_record(TRAINING))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_is_refused(value):
    with pytest.raises(ValueError, match=r"resnet8-hspg-s0.*top1.*finite"):
        to_json(replace(eval_record(TRAINING), dense={"loss": 0.0, "top1": value}))
    with pytest.raises(ValueError):
        canonical({"x": value})


def _edited(record, path: Path, edit) -> Path:
    value = json.loads(to_json(record))
    edit(value)
    path.write_text(canonical(value))
    return path


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda v: v.update(accuracy=1.0), "accuracy: Unexpected keyword"),
        (lambda v: v["final"].pop("top1"), "do not hold the same scores"),
        (lambda v: v.pop("seed"), "seed: Field required"),
        (lambda v: v.update(seed="0"), "seed: Input should be a valid integer"),
        (lambda v: v.update(schema_version=2), "schema_version: Input should be 1"),
        (lambda v: v["counts"].update(params_kept=10**6), "params: dense >= kept >= nonzero"),
        (lambda v: v["counts"].update(flops=1), "counts.flops"),
        (lambda v: v.update(group_sparsity=1.5), r"group_sparsity is 1.5, not in \[0, 1\]"),
        (lambda v: v.update(kind="sweep"), "kind: Input should be 'evaluate'"),
        (lambda v: v["finetune_curve"].reverse(), "epochs do not increase"),
    ],
)
def test_damage_names_file_and_key(tmp_path, edit, said):
    path = _edited(eval_record(TRAINING), tmp_path / "row.json", edit)
    with pytest.raises(ValueError, match=said) as error:
        read_record(EvalRecord, path)
    assert str(error.value).startswith(str(path))
    assert "dvc repro" in str(error.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-40],
        lambda raw: raw.replace(b"  ", b" "),
        lambda raw: raw.replace(b"97.0", b"97.00"),
        lambda raw: b"\xff" + raw,
        lambda raw: raw[:0],
    ],
)
def test_spoilt_bytes_are_named(tmp_path, spoil):
    path = tmp_path / "row.json"
    path.write_bytes(spoil(to_json(eval_record(TRAINING)).encode()))
    with pytest.raises(ValueError, match=r"row\.json"):
        read_record(EvalRecord, path)


def test_adding_a_sparsity_keeps_the_hashes_of_the_other_points():
    few, many = sweep_record(TRAINING, [0.5]), sweep_record(TRAINING, [0.3, 0.5])
    assert {sha(leaf) for leaf in few.leaves()} < {sha(leaf) for leaf in many.leaves()}
    assert sha(few) != sha(many)


def test_contradictions_are_refused_when_made():
    point = sweep_record(TRAINING).points[0]
    with pytest.raises(ValueError, match="twice"):
        replace(sweep_record(TRAINING), points=(point, point))
    with pytest.raises(ValueError, match="not in"):
        replace(point, sparsity=1.0)
    with pytest.raises(ValueError, match="macs"):
        Counts(10, 5, 5, 10, 5, 6)


def test_a_leaf_leaves_the_weight_distribution_out():
    record = sweep_record(TRAINING)
    assert record.weights is not None
    assert from_json(SweepRecord, to_json(record)).weights == record.weights
    assert {leaf.weights for leaf in record.leaves()} == {None}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda v: v["points"][0].update(ranked="biases"), r"points\.0\.ranked"),
        (lambda v: v["points"][0].update(scope="network"), r"points\.0\.scope"),
        (lambda v: v["points"][0].update(units_kept=801), r"units_kept is 801, not in \[0, 800\]"),
        (lambda v: v["points"].append(v["points"][0]), "same protocol, sparsity and recal"),
        (lambda v: v["weights"]["above"].reverse(), "above: one count per threshold"),
        (lambda v: v["weights"]["above"].append(951), "above: one count per threshold"),
    ],
)
def test_a_damaged_sweep_names_what_is_wrong(tmp_path, edit, said):
    path = _edited(sweep_record(TRAINING), tmp_path / "sweep.json", edit)
    with pytest.raises(ValueError, match=said):
        read_record(SweepRecord, path)


def test_kinds_do_not_read_as_each_other(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, sweep_record(TRAINING))
    assert isinstance(read_record(SweepRecord, path).points[0], SweepPoint)
    with pytest.raises(ValueError, match="not a TrainRecord"):
        read_record(TrainRecord, path)
