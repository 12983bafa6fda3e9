"""The whole list runs only where it is asked for: `pytest -m zoo`."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "zoo" in config.option.markexpr:
        return
    asked = [item for item in items if item.get_closest_marker("zoo") is None]
    if len(asked) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in asked])
        items[:] = asked
