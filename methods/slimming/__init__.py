"""Network slimming: L1 on the scales of BatchNorm; the channels with the smallest are removed."""

from methods.slimming.method import Slimming, SlimmingConfig

__all__ = ["Slimming", "SlimmingConfig"]
