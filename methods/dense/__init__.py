"""Dense training: the baseline, and the starting point of one-shot pruning."""

from methods.dense.method import Dense, DenseConfig

__all__ = ["Dense", "DenseConfig"]
