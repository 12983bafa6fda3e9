"""Gradual magnitude pruning: the sparsity rises along a cubic curve while the network trains."""

from methods.gmp.method import GMP, GMPConfig, cubic_sparsity

__all__ = ["GMP", "GMPConfig", "cubic_sparsity"]
