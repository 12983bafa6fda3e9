"""Pruning at initialisation: the mask is drawn before the first step and never changes."""

from methods.init_pruning.method import InitPruning, InitPruningConfig

__all__ = ["InitPruning", "InitPruningConfig"]
