"""HSPG: half-space stochastic projected gradient, the optimizer of "Only Train Once"."""

from methods.hspg.method import (
    HSPG,
    PRESETS,
    HSPGConfig,
    HSPGMethod,
    is_linear,
    penalty_at,
)

__all__ = ["HSPG", "PRESETS", "HSPGConfig", "HSPGMethod", "is_linear", "penalty_at"]
