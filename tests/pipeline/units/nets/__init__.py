"""All small networks of the tests."""

from tests.pipeline.units.cases import CASES, Net, conv, image
from tests.pipeline.units.nets import (
    attention,  # noqa: F401  (they register)
    image_attention,  # noqa: F401  (they register)
    layers,  # noqa: F401  (they register)
    layout,  # noqa: F401  (they register)
    leftovers,  # noqa: F401  (they register)
    topologies,  # noqa: F401  (they register)
)

__all__ = ["CASES", "Net", "conv", "image"]
