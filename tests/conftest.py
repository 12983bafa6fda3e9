"""Every test runs on one CPU thread, offline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

from tests.faults.disks import small_file_system

torch.set_num_threads(1)
# The same examples in every run: a find of chance belongs into the test as an example.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 64 KiB, where this user may mount one."""
    with small_file_system(tmp_path_factory.mktemp("disk"), "64k") as folder:
        yield folder
