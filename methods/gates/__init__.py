"""Channel gates on a network whose weights are never trained."""

from methods.gates.method import Gates, GatesConfig, gate_places, gated_output, regulariser

__all__ = ["Gates", "GatesConfig", "gate_places", "gated_output", "regulariser"]
