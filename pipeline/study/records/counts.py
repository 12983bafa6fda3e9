"""Parameters and MACs of registered networks.

Pruning from Scratch learns widths on a network wider than the standard one and is asked for a
fraction of the standard one's MACs. Records hold the counts of the trained network only; those of
the reference follow from its width arguments, the rest of the record and the code of the network.
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
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.study.records.record import EvalRecord, Reference, TrainRecord


def count_network(network: NetworkSpec, model: nn.Module) -> Counts:
    """Parameters and MACs of `model`, a dense or pruned `network`, on one example."""
    return count(model, network.example()).without(network.registered.uncounted)


def reference_of(
    record: EvalRecord, training: TrainRecord, args: Mapping[str, Any] | None
) -> Reference | None:
    """The reference with the width arguments `args` of a pruning; None: it names none.

    Raises:
        ValueError: the code of the network no longer gives what the record counted.
    """
    if args is None:
        return None
    shape, counts = tuple(record.input_shape), record.counts
    known = (training.data, shape, counts.params_dense, counts.macs_dense)
    classes = _classes(training.model, json.dumps(dict(training.model_args)), *known)
    found = _counted(training.model, json.dumps(dict(args)), training.data, shape, classes)
    return Reference(" ".join(f"{k}={v}" for k, v in args.items()), found.params, found.macs)


@cache
def _classes(
    model: str, args: str, data: str, shape: tuple[int, ...], params: int, macs: int
) -> int:
    """The number of classes, which no record has: parameters are linear in it, so two sizes give
    the one with which the trained network is as large as the record says."""
    one, two = (_counted(model, args, data, shape, n).params for n in (1, 2))
    number = 1 + (params - one) // (two - one) if two > one else 2
    found = _counted(model, args, data, shape, number) if number > 0 else None
    if found is None or (found.params, found.macs) != (params, macs):
        raise ValueError(
            f"{model} {args}: no number of classes gives it {params} parameters and {macs} MACs, "
            "as its record says: the code of the network has changed since. Run `dvc repro`"
        )
    return number


@cache
def _counted(model: str, args: str, data: str, shape: tuple[int, ...], classes: int) -> Counts:
    family, _, name = model.rpartition("/")
    network = NetworkSpec(family, name, json.loads(args), DatasetInfo(data, shape, classes))
    with torch.random.fork_rng(devices=[]):
        return count_network(network, network.build())
