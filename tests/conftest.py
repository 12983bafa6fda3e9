"""Every test runs on one CPU thread, offline."""

from __future__ import annotations

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from hypothesis import settings

torch.set_num_threads(1)
# The same examples in every run: a find of chance belongs into the test as an example.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")
