"""DHSPG: dual half-space projected gradient, the optimizer of OTOv2."""

from methods.dhspg.method import DHSPG, DHSPGConfig, DHSPGMethod

__all__ = ["DHSPG", "DHSPGConfig", "DHSPGMethod"]
