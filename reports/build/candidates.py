"""Candidates: networks trained and pruned in one way, over all seeds.

No method is named here except the dense network, which all others are compared with.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from reports.build.table import OF, dicts, known, without_seed
from reports.build.tables import NAMES, by_seed, scores_of, whole

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["dense", "pruning", "one-shot"]
Run = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A quantity where less is better. `source` is the MLflow field. `of`: the total it is a
    percentage of, macs or params. `exact`: it comes from records, not from a clock."""

    key: str
    label: str
    unit: str
    source: str
    of: str = ""
    exact: bool = True

    def read(self, run: Run) -> float | None:
        value = run.get(self.source)
        if value is None or not known(value):
            return None
        return float(100.0 * value / whole(run, self.of) if self.of else value)


def _share(key: str, label: str) -> Axis:
    return Axis(key, label, "% of dense", f"metrics.size/{key}", key.partition("_")[0])


AXES = (
    _share("macs_kept", "MACs kept"),
    _share("macs_nonzero", "MACs non-zero"),
    _share("params_kept", "params kept"),
    _share("params_nonzero", "params non-zero"),
    Axis("cost", "training cost", "MACs", "metrics.cost/total_macs"),
)


@dataclass(frozen=True)
class Candidate:
    """One row. `values` holds one number per seed for each quantity, in the order of `seeds`.
    Quantity `below`: main score of the best dense network of the league (mean) minus this one's.
    `of`: width arguments of the pruning's reference, in whose league it competes, or ""."""

    name: str
    network: str
    data: str
    method: str
    kind: Kind
    settings: str
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    runs: tuple[tuple[str, str], ...]
    of: str = ""

    @property
    def league(self) -> tuple[str, str]:
        """Network and data: only rows of one league are compared."""
        return self.network, self.data

    @property
    def line(self) -> str:
        """The sweep that a one-shot point belongs to."""
        return re.sub(r" @ [^,]+", "", self.name)

    @property
    def styled_as(self) -> str:
        """The name whose style it takes: its own, or that of the training of a one-shot point."""
        return self.name.partition(" @ ")[0]

    def mean(self, key: str) -> float | None:
        values = self.values.get(key)
        return statistics.fmean(values) if values else None

    def paired(self, other: Candidate, key: str) -> list[float]:
        """Differences self - other over the seeds both have."""
        mine = dict(zip(self.seeds, self.values[key], strict=True))
        theirs = dict(zip(other.seeds, other.values[key], strict=True))
        return [mine[s] - theirs[s] for s in self.seeds if s in theirs]


def latency_axes(runs: pd.DataFrame) -> tuple[Axis, ...]:
    """Milliseconds per batch of the sizes that any run was timed with, from event files."""
    found = (re.fullmatch(r"metrics\.latency/batch(\d+)_ms", str(c)) for c in runs.columns)
    sizes = sorted(int(m.group(1)) for m in found if m)
    return tuple(
        Axis(f"latency{n}", f"latency, batch {n}", "ms", f"metrics.latency/batch{n}_ms", "", False)
        for n in sizes
    )


def candidates(
    prunings: pd.DataFrame, points: pd.DataFrame, axes: Sequence[Axis] = AXES
) -> list[Candidate]:
    """Every candidate of a study: dense networks, prunings, one-shot sweep points."""
    scores = scores_of(prunings) or scores_of(points)
    if not scores:
        return []
    pruned, swept = dicts(prunings), dicts(points)
    groups: list[tuple[Kind, list[dict[str, Any]]]] = [
        ("dense", _dense([*pruned, *swept])),
        ("pruning", pruned),
        ("one-shot", swept),
    ]
    networks = {_size(run, "dense"): _network(run) for run in reversed([*pruned, *swept])}
    found = [
        _candidate(kind, group, networks, scores, axes)
        for kind, runs in groups
        for group in by_seed(runs, skip=NAMES)
    ]
    order = list(dict.fromkeys(c.league for c in found))
    ordered = sorted(_told_apart(found), key=lambda c: order.index(c.league))
    return [_with_below(c, ordered, scores[0]) for c in ordered]


def _told_apart(found: Sequence[Candidate]) -> list[Candidate]:
    """Candidates of one name that differ in settings, e.g. `a (rounds 7)` and `a (rounds 15)`."""
    namesakes: dict[Hashable, list[Candidate]] = {}
    for row in found:
        namesakes.setdefault((row.league, row.kind, row.name), []).append(row)
    told = []
    for row in found:
        every = [c.settings.split(", ") for c in namesakes[row.league, row.kind, row.name]]
        own = [s for s in row.settings.split(", ") if not all(s in other for other in every)]
        told.append(replace(row, name=f"{row.name} ({', '.join(own)})") if own else row)
    return told


def _with_below(row: Candidate, rows: Sequence[Candidate], score: str) -> Candidate:
    rivals = [c.mean(score) for c in rows if c.kind == "dense" and c.league == row.league]
    best = max((mean for mean in rivals if mean is not None), default=None)
    if best is None or score not in row.values:
        return row
    return replace(row, values={**row.values, "below": tuple(best - v for v in row.values[score])})


def _candidate(
    kind: Kind,
    group: Sequence[Run],
    networks: Mapping[Hashable, str],
    scores: Sequence[str],
    axes: Sequence[Axis],
) -> Candidate:
    """`networks`: names by size, to identify the network of a reference."""
    first = group[0]
    read: dict[str, Callable[[Run], float | None]] = {axis.key: axis.read for axis in axes}
    for name in scores:
        read[name] = lambda run, field=f"metrics.final/{name}": run.get(field)  # type: ignore[misc]
    values = {}
    for key, of in read.items():
        found = [of(run) for run in group]
        if all(known(v) for v in found):
            values[key] = tuple(float(v) for v in found if v is not None)
    network, reference = _network(first), _reference(first)
    if reference:
        bare = f"{network.split()[0]} {reference}"
        network = networks.get(_size(first, "reference"), bare)
    return Candidate(
        name=_name(kind, first),
        network=network,
        data=str(first["params.data"]),
        method=str(first["params.method"]),
        kind=kind,
        settings=_settings(kind, first),
        seeds=tuple(int(run["params.seed"]) for run in group),
        values=values,
        runs=tuple((str(run["run"]), str(run["record_sha"])) for run in group),
        of=reference,
    )


def _network(run: Run) -> str:
    """Name of the network and width arguments that differ from the defaults."""
    knobs = _texts(run, "params.model_args.")
    name = run["params.model"].rpartition("/")[2]
    return " ".join([name, *(f"{k}={v}" for k, v in knobs.items())])


def _reference(run: Run) -> str:
    found = run.get(OF.source)
    return str(found) if known(found) else ""


def _size(run: Run, which: str) -> Hashable:
    """Identity of a network: name, data set and size."""
    sizes = (run[f"metrics.size/{what}_{which}"] for what in ("macs", "params"))
    return run["params.model"], run["params.data"], *sizes


def _dense(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One run per dense training: scores before pruning, full size, cost of the training alone."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        whole = {k: v for k, v in run.items() if k.startswith(_OF_A_TRAINING) or "." not in k}
        for key, value in run.items():
            if key.startswith("metrics.dense/"):
                whole |= {key: value, key.replace("dense/", "final/", 1): value}
        for what in ("macs", "params"):
            size = run[f"metrics.size/{what}_dense"]
            whole |= {f"metrics.size/{what}_{k}": size for k in ("dense", "kept", "nonzero")}
        whole["metrics.cost/total_macs"] = run.get("metrics.cost/train_macs")
        if run["params.method"] == "dense" and run.get("params.at", "final") == "final":
            found.setdefault(run["params.training"], whole)
    return list(found.values())


_OF_A_TRAINING = tuple(
    f"params.{k}"
    for k in ("training", "data", "seed", "model", "method", "model_args", "method_params",
              "recipe")
)  # fmt: skip


def _name(kind: Kind, run: Run) -> str:
    training = without_seed(str(run["params.training"]))
    if kind == "pruning":
        return without_seed(str(run["params.pruning"]))
    if kind == "dense":
        return training
    marks = [str(v) for k in ("ranked", "scope") if known(v := run.get(f"params.{k}"))]
    marks += ["BN recalibrated"] if run.get("params.recalibrated") == "true" else []
    return ", ".join([f"{training} @ {float(run['params.sparsity']):g}", *marks])


def _settings(kind: Kind, run: Run) -> str:
    """Method settings that are set, budget and protocol, as one line of text."""
    chosen = _texts(run, "params.method_params.").items()
    told = [f"{k} {v}" for k, v in chosen if v not in ("null", "false", "[]", "none")]
    told.append(f"{run.get('params.recipe.epochs', '?')} epochs")
    if kind == "pruning":
        rule, value = run.get("params.target.rule"), run.get("params.target.value")
        reference = _reference(run)
        of = f" of {reference}" if reference else ""
        told.append(f"target {rule}" + ("" if rule in ("zeros", "none") else f" {value}{of}"))
        if reference:
            told.append(f"trained as {_network(run)}")
        told.append(str(run.get("params.granularity")))
        if run.get("params.finetune.epochs", "0") not in ("0", 0):
            told.append(f"retrained {run['params.finetune.epochs']} epochs")
    if kind == "one-shot":
        told.append("one-shot, no retraining")
    return ", ".join(told)


def _texts(run: Run, prefix: str) -> dict[str, str]:
    return {k.removeprefix(prefix): str(v) for k, v in run.items()
            if k.startswith(prefix) and known(v)}  # fmt: skip
