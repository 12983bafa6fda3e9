"""Minutes of a real Slurm run only where they are asked for: `pytest -m cluster`."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `cluster`, unless -m names it."""
    if "cluster" not in config.option.markexpr:
        items[:] = [item for item in items if item.get_closest_marker("cluster") is None]
