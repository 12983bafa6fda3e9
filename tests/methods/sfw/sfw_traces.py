"""The recorded numbers of the SFW authors' code, as tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.sfw.constraints import ConvexSet, KSparsePolytope, LpBall

DATA = Path(__file__).parent / "data"


def load(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"sfw_{name}.json").read_text())


def vector(values: list[float], shape: list[int] | None = None) -> Tensor:
    flat = torch.tensor(values, dtype=torch.float64)
    return flat if shape is None else flat.view(shape)


def close(actual: Tensor, expected: list[float] | Tensor) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64).view(actual.shape)
    torch.testing.assert_close(actual.detach().double(), wanted, rtol=1e-11, atol=1e-15)


def set_of(facts: dict[str, Any]) -> ConvexSet:
    """The set for a recorded `constraint_per_tensor` entry or case."""
    if "K" in facts:
        return KSparsePolytope(facts["K"], facts["radius"])
    n = facts.get("n") or len(facts["x"])
    return LpBall(float(facts.get("p", 2)), n, facts["radius"])
