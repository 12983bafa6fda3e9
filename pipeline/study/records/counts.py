"""Parameters and MACs of registered networks.

Pruning from Scratch learns widths on a network wider than the standard one, and its target is a
fraction of the standard one's MACs. A record holds only the counts of the trained network. Those of
the reference are computed from its width arguments, the record of the data and the network's code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from pipeline.data.info import DatasetInfo
from pipeline.measure.count import Counts, count
from pipeline.study.paths import DATA_RECORD
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.data import DataRecord
from pipeline.study.records.record import EvalRecord, Reference, TrainRecord


def count_network(network: NetworkSpec, model: nn.Module) -> Counts:
    """Parameters and MACs of `model`, a dense or pruned `network`, on one example."""
    return count(model, network.example()).without(network.registered.uncounted)


def reference_of(
    record: EvalRecord,
    training: TrainRecord,
    args: Mapping[str, Any] | None,
    data: DataRecord | None,
) -> Reference | None:
    """The reference with the width arguments `args` of a pruning; None if it names none.

    Args:
        data: record of the data that `training` used; needed if there are `args`.

    Raises:
        ValueError: the record of the data is missing or of other data, or the network's code no
            longer gives the counts in `record`.
    """
    if args is None:
        return None
    if data is None or data.card_sha != training.parents.get("data"):
        found = "is of other data than" if data else "is missing for"
        raise ValueError(
            f"{DATA_RECORD}: {found} training {training.training!r}. Run `dvc repro prepare-data`"
        )
    dense = _counted(training.model, json.dumps(dict(training.model_args)), data)
    counted = (record.counts.params_dense, record.counts.macs_dense)
    if (dense.params, dense.macs) != counted:
        raise ValueError(
            f"{training.model} {dict(training.model_args)}: has {dense.params} parameters and "
            f"{dense.macs} MACs, its record says {counted[0]} and {counted[1]}: the code of the "
            "network has changed since. Run `dvc repro`"
        )
    wanted = _counted(training.model, json.dumps(dict(args)), data)
    return Reference(" ".join(f"{k}={v}" for k, v in args.items()), wanted.params, wanted.macs)


def _counted(model: str, args: str, data: DataRecord) -> Counts:
    return _cached(model, args, data.name, tuple(data.input_shape), data.num_classes)


@cache
def _cached(model: str, args: str, name: str, shape: tuple[int, ...], classes: int) -> Counts:
    family, _, network_name = model.rpartition("/")
    info = DatasetInfo(name, shape, classes)
    network = NetworkSpec(family, network_name, json.loads(args), info)
    with torch.random.fork_rng(devices=[]):
        return count_network(network, network.build())
