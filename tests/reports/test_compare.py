"""The comparison: leagues, fronts, pairs, costs; and what an exact test can and cannot say."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.study.records.cost import costs, curve_until
from pipeline.study.records.record import CurvePoint
from reports.build.candidates import Candidate, candidates
from reports.build.compare import compare_table, front, pairs_table
from reports.build.render import csv, latex, markdown
from reports.build.significance import holm, sign_flip, smallest_p
from tests.reports import contest
from tests.reports.samples import eval_record, frames, train_record, write_study

NONE = pd.DataFrame()


@pytest.fixture(scope="module")
def rows() -> list[Candidate]:
    return candidates(contest.runs(), NONE)


def test_one_candidate_per_way_of_pruning_over_all_seeds(rows):
    assert len(rows) == 2 * (1 + 6 * 3)
    row = next(c for c in rows if c.name == "vgg16_bn-imp-p90")
    assert row.seeds == (0, 1, 2, 3, 4)
    assert row.league == ("vgg16_bn", "cifar10")
    assert len(row.runs) == 5


def test_rows_of_one_name_are_told_apart_by_their_settings():
    """Two seeds of a training with fewer rounds than the others are a row of their own."""
    runs = contest.runs()
    fewer = runs["params.pruning"].str.contains("vgg16_bn-imp-s[34]-p90")
    assert fewer.sum() == 2
    rounds = runs.loc[fewer, "params.method_params.rounds"].iloc[0]
    runs.loc[fewer, "params.method_params.rounds"] = "2"
    found = {c.name: c.seeds for c in candidates(runs, NONE)}
    assert found[f"vgg16_bn-imp-p90 (rounds {rounds})"] == (0, 1, 2)
    assert found["vgg16_bn-imp-p90 (rounds 2)"] == (3, 4)
    assert len(found) == 2 * (1 + 6 * 3) + 1


def test_a_dense_network_competes_at_its_full_size(rows):
    row = next(c for c in rows if c.name == "resnet20-dense")
    assert row.kind == "dense"
    assert set(row.values["macs_kept"]) == set(row.values["params_nonzero"]) == {100.0}
    assert row.mean("below") == pytest.approx(0.0)


def test_sweep_points_compete_too(tmp_path):
    found = candidates(*frames(write_study(tmp_path)))
    assert {c.kind for c in found} == {"dense", "pruning", "one-shot"}
    table = compare_table(found, "top1")
    assert not any("@" in name for name in table.rows["row"])


def test_leagues_do_not_meet(rows):
    best = front(rows, "top1", "macs_nonzero")
    assert {rows[i].network for i in best} == {"resnet20", "vgg16_bn"}
    one = [c for c in rows if c.network == "resnet20"]
    assert {one[i].name for i in front(one, "top1", "macs_nonzero")} == {
        rows[i].name for i in best if rows[i].network == "resnet20"
    }


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nobody_beats(spots):
    rows = [
        Candidate(str(i), "n", "d", "m", "pruning", "", (0,), {"x": (x,), "y": (y,)}, ())
        for i, (x, y) in enumerate(spots)
    ]
    best = front(rows, "y", "x")
    assert best
    for i, (x, y) in enumerate(spots):
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in spots)
        assert (i in best) != beaten


def test_pairs_did_the_same_job_on_the_same_network(rows):
    table = pairs_table(rows, "top1")
    assert len(table.rows) == 2 * 3 * 15
    for row in table.rows.to_dict("records"):
        assert row["row"].split("-")[0] == row["rival"].split("-")[0]
        assert row["row"].split("-p")[1] == row["rival"].split("-p")[1]
        assert row["p"] >= row["least"] == 0.0625


def test_two_seeds_are_not_tested():
    assert pairs_table(candidates(contest.runs(2), NONE), "top1").rows.empty


def test_seeds_are_paired_by_their_number(rows):
    a, b = (next(c for c in rows if c.name == f"resnet20-{m}-p90") for m in ("imp", "sfw"))
    turned = replace(
        b, seeds=b.seeds[::-1], values={k: tuple(v[::-1]) for k, v in b.values.items()}
    )
    assert sorted(a.paired(b, "top1")) == pytest.approx(sorted(a.paired(turned, "top1")))
    fewer = replace(b, seeds=(2,), values={k: v[2:3] for k, v in b.values.items()})
    assert a.paired(fewer, "top1") == pytest.approx([a.values["top1"][2] - b.values["top1"][2]])


def test_all_formats_render(rows):
    for table in (compare_table(rows, "top1"), pairs_table(rows, "top1")):
        assert "not run" not in markdown(table)
        assert latex(table).count(r"\\") == len(table.rows) + 1
        assert csv(table).count("\n") == len(table.rows) + 1


def brute(differences):
    signs = list(product((1, -1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(p, differences, strict=True))) for p in signs]
    return sum(s >= abs(sum(differences)) - 1e-12 for s in sums) / len(signs)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=7))
def test_sign_flip_is_the_definition(differences):
    p = sign_flip([float(d) for d in differences])
    assert p == brute(differences)
    assert p == sign_flip([-float(d) for d in differences])
    assert smallest_p(len(differences)) <= p <= 1.0


def test_sign_flip_by_hand():
    assert sign_flip([1.0, 2.0, 3.0]) == 0.25
    assert sign_flip([1.0, 2.0, -3.0]) == 1.0
    assert sign_flip([0.1] * 6) == 0.03125
    assert sign_flip([0.1, 0.2, 0.3]) == 0.25  # 0.1 + 0.2 is not 0.3 in binary
    assert sign_flip([1.0] * 18) < 1e-3  # sampled
    with pytest.raises(ValueError, match="at least one pair"):
        sign_flip([])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_cost_by_hand():
    training = replace(train_record("dense"), recipe={"epochs": 3, "batch_size": 20})
    record = replace(eval_record(training), finetune={"epochs": 2, "batch_size": 10})
    spent = costs(record, training)
    assert spent["cost/train_macs"] == 3 * 20_000 * (30 * 20)
    assert spent["cost/retrain_macs"] == 3 * 9_000 * (20 * 10)
    assert spent["cost/total_macs"] == sum(spent.values()) / 2


def test_the_loops_own_count_of_examples_goes_first():
    point = CurvePoint(0, 10, "train", {"examples": 597.0})
    training = replace(train_record("dense"), curve=(point,), recipe={"batch_size": 64})
    assert costs(eval_record(training), training)["cost/train_macs"] == 3 * 20_000 * 597


def test_an_early_state_costs_what_it_took_to_get_there():
    curve = [CurvePoint(e, e + 1, f"round-{e // 2}", {}) for e in range(6)]
    training = replace(train_record("imp"), curve=tuple(curve), recipe={"rewind_epoch": 1})
    assert len(curve_until(training, "round-1")) == 4
    assert len(curve_until(training, "rewind")) == 1
    assert len(curve_until(training, "init")) == 0
    assert len(curve_until(training, "final")) == 6
