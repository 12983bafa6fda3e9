"""The quantities that papers publish, in their units, and the field of our runs that holds them.

Percentages are 0 to 100. MACs is what most papers print as "FLOPs".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reports.build.tables import whole

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Quantity:
    """A column of a published table. `field`: the MLflow field of our runs; `read`: its value in
    the published unit, None where our runs do not measure it."""

    header: str
    field: str = ""
    read: Callable[[Run], float] | None = None

    @property
    def is_percent(self) -> bool:
        return "%" in self.header


def _score(header: str, field: str) -> Quantity:
    return Quantity(header, field, lambda run: float(run[field]))


def _size(header: str, what: str, unit: float | None) -> Quantity:
    """Kept MACs or parameters in `unit`; without one, in percent of the dense network or of the
    reference that the pruning names."""
    field = f"metrics.size/{what}_kept"
    if unit is None:
        return Quantity(header, field, lambda run: 100.0 * run[field] / whole(run, what))
    return Quantity(header, field, lambda run: run[field] / unit)


_WEIGHTS, _GROUPS = "metrics.sparsity/weight", "metrics.sparsity/group"
QUANTITIES: Mapping[str, Quantity] = {
    "top1": _score("top-1 (%)", "metrics.final/top1"),
    "top5": _score("top-5 (%)", "metrics.final/top5"),
    "pruned_top1": _score("top-1 before retraining (%)", "metrics.pruned/top1"),
    "exact_match": _score("exact match (%)", "metrics.final/exact_match"),
    "f1": _score("F1 (%)", "metrics.final/f1"),
    "macs": _size("MACs (% of dense)", "macs", None),
    "macs_m": _size("MACs (M)", "macs", 1e6),
    "params": _size("params (% of dense)", "params", None),
    "params_m": _size("params (M)", "params", 1e6),
    "params_nonzero": Quantity(
        "non-zero params (% of dense)",
        "metrics.size/params_nonzero",
        lambda run: 100.0 * run["metrics.size/params_nonzero"] / whole(run, "params"),
    ),
    "weights": Quantity("weights kept (%)", _WEIGHTS, lambda run: 100.0 - 100.0 * run[_WEIGHTS]),
    "group_sparsity": Quantity("group sparsity (%)", _GROUPS, lambda run: 100.0 * run[_GROUPS]),
    "early_iteration": _score("early stop (iteration)", "metrics.early_stop/iteration"),
    "early_top1": _score("top-1 at the early stop (%)", "metrics.early_stop/top1"),
    "early_validation_top1": _score(
        "validation top-1 at the early stop (%)", "metrics.early_stop_validation/top1"
    ),
    "best_epoch": Quantity("best epoch"),
    "train_flops": Quantity("training FLOPs (P)"),
    "train_flops_20th": Quantity("training FLOPs (0.05 P)"),
    "train_energy": Quantity("training energy (kJ)"),
    "psnr_set14": Quantity("PSNR on Set14 (dB)"),
    "psnr_b100": Quantity("PSNR on B100 (dB)"),
    "psnr_urban100": Quantity("PSNR on Urban100 (dB)"),
}
