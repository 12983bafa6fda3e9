"""How long a task may take: what decides which of two ready tasks goes first."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from pipeline import registry
from pipeline.data.prepared import load_prepared
from pipeline.measure.count import count
from pipeline.runner.task import Task
from pipeline.study import paths
from pipeline.study.params.load import Params
from pipeline.study.records.artifacts import NetworkSpec

OTHER_STAGES = 1.0  # beside the epochs x MACs of a training


def training_cost(params: Params, key: str) -> float:
    """Epochs times MACs of the dense network."""
    training, recipe = params.training(key), params.recipe(key)
    network = NetworkSpec.of(training.model, load_prepared(paths.PREPARED).info)
    method = registry.method_spec(training.method).build(params.method_config(key))
    epochs = sum(phase.epochs for phase in method.phases(recipe))
    return float(epochs * _macs(json.dumps(network.to_json())))


def cost_of(params: Params) -> Callable[[Task], float]:
    """The cost of a task: of a training by its epochs and MACs, once the data is prepared."""

    def cost(task: Task) -> float:
        if task.module != "stages.train" or not paths.PREPARED.exists():
            return OTHER_STAGES
        return training_cost(params, task.name.partition("@")[2])

    return cost


@cache
def _macs(network: str) -> int:
    spec = NetworkSpec.from_json(json.loads(network))
    return count(spec.build(), spec.example()).macs
