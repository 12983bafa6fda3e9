"""All small networks of the tests."""

from tests.pipeline.units import nets_attention, nets_layers, nets_layout, nets_topologies  # noqa: F401  (they register)
from tests.pipeline.units.cases import CASES, Net, conv, image

__all__ = ["CASES", "Net", "conv", "image"]
