"""The reference network of sizes: counted from a record, for every task, or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.data.info import DatasetInfo
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.counts import count_network, reference_of
from pipeline.study.records.data import DataRecord
from pipeline.study.records.record import Reference
from pipeline.study.tracking.record_views import evaluate_view
from tests.reports.samples import eval_record, of_network, train_record


def data_of(training, info: DatasetInfo) -> DataRecord:
    return DataRecord(info.name, info.input_shape, info.num_classes, {}, training.parents["data"])


@pytest.mark.parametrize("classes", [1, 2, 10, 37])
def test_the_counts_are_those_of_the_network_that_it_names(classes):
    info = DatasetInfo("digits", (1, 8, 8), classes)
    training, pruned = of_network(NetworkSpec("small", "resnet8", {"width": 20}, info))
    standard = NetworkSpec("small", "resnet8", {"width": 16}, info)
    expected = count_network(standard, standard.build())
    found = reference_of(pruned, training, {"width": 16}, data_of(training, info))
    assert found == Reference("width=16", expected.params, expected.macs)


def test_a_network_without_classes_is_counted_too():
    sizes = {"layers": 1, "hidden": 8, "heads": 2, "intermediate": 16, "vocab": 50}
    spec = NetworkSpec("bert", "encoder_qa", sizes, DatasetInfo("squad", (3, 32), 2))
    training, pruned = of_network(spec)
    found = reference_of(pruned, training, sizes, data_of(training, spec.info))
    assert (found.params, found.macs) == (pruned.counts.params_dense, pruned.counts.macs_dense)


def test_no_reference_is_none_and_draws_nothing():
    before = torch.get_rng_state()
    info = DatasetInfo("digits", (1, 8, 8), 5)
    training, pruned = of_network(NetworkSpec("small", "resnet8", {"width": 6}, info))
    torch.set_rng_state(before)
    assert reference_of(pruned, training, None, None) is None
    reference_of(pruned, training, {"width": 4}, data_of(training, info))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("part", ["params_dense", "macs_dense"])
def test_a_network_that_has_changed_since_is_refused(part):
    info = DatasetInfo("digits", (1, 8, 8), 10)
    training, pruned = of_network(NetworkSpec("small", "resnet8", {"width": 20}, info))
    counts = replace(pruned.counts, **{part: getattr(pruned.counts, part) + 1})
    with pytest.raises(ValueError, match=r"small/resnet8.*dvc repro"):
        reference_of(
            replace(pruned, counts=counts), training, {"width": 16}, data_of(training, info)
        )


def test_the_record_of_the_data_is_there_and_is_of_this_data():
    info = DatasetInfo("digits", (1, 8, 8), 10)
    training, pruned = of_network(NetworkSpec("small", "resnet8", {"width": 20}, info))
    with pytest.raises(ValueError, match=r"data\.json: is missing for .*dvc repro prepare-data"):
        reference_of(pruned, training, {"width": 16}, None)
    other = replace(data_of(training, info), card_sha="0" * 64)
    with pytest.raises(ValueError, match=r"data\.json: is of other data than training"):
        reference_of(pruned, training, {"width": 16}, other)


def test_a_run_says_what_its_percentages_are_of():
    training = train_record("gates")
    record = eval_record(training)
    bare = evaluate_view(record, training).summary()
    view = evaluate_view(record, training, Reference("width=16", 800, 10_000))
    told = view.summary()
    assert bare["percent/macs_kept"] == 45.0
    assert told["percent/macs_kept"] == 90.0
    assert told["percent/params_nonzero"] == 62.5
    assert (told["size/macs_reference"], told["size/params_reference"]) == (10_000, 800)
    assert told["size/macs_dense"] == bare["size/macs_dense"]
    assert view.params["reference"] == "width=16"
    assert "size/macs_reference" not in bare
