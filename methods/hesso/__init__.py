"""HESSO: hybrid efficient structured sparse optimizer, the successor of DHSPG in OTO."""

from methods.hesso.method import HESSO, HESSOConfig, HESSOMethod

__all__ = ["HESSO", "HESSOConfig", "HESSOMethod"]
