"""SFW: train with Stochastic Frank-Wolfe inside a K-sparse polytope, then prune to any sparsity."""

from methods.sfw.method import SFW, SFWConfig, SFWMethod, feasible_sets

__all__ = ["SFW", "SFWConfig", "SFWMethod", "feasible_sets"]
