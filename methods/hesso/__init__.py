"""HESSO: hybrid efficient structured sparse optimizer, the successor of DHSPG in OTO."""

from methods.hesso.method import HESSO, HESSOConfig, HESSOMethod, HESSOOptions

__all__ = ["HESSO", "HESSOConfig", "HESSOMethod", "HESSOOptions"]
