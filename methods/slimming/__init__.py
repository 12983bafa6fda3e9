"""Network slimming: L1 on the scales of BatchNorm, then the smallest scales go."""

from methods.slimming.method import Slimming, SlimmingConfig

__all__ = ["Slimming", "SlimmingConfig"]
