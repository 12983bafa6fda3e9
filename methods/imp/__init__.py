"""Iterative magnitude pruning and its retraining rules: lottery tickets, rewinding, fine-tuning."""

from methods.imp.method import IMP, IMPConfig, keep_largest

__all__ = ["IMP", "IMPConfig", "keep_largest"]
