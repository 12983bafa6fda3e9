"""Dense training: the baseline, and the parent of every one-shot pruning."""

from methods.dense.method import Dense, DenseConfig

__all__ = ["Dense", "DenseConfig"]
