"""What the server of forked stages imports, so that no training imports it again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.runner.child import PRELOADED

LOOK = """
import sys, threading
import pipeline.study.tracking.preload
print("mlflow.store.tracking.sqlalchemy_store" in sys.modules, threading.active_count())
"""


@pytest.mark.parametrize(("tracking", "said"), [("", "True 1"), ("off", "False 1")])
def test_mlflow_is_imported_without_a_thread(tracking: str, said: str) -> None:
    """A thread would not be there after a fork."""
    assert "pipeline.study.tracking.preload" in PRELOADED
    done = subprocess.run(
        (sys.executable, "-c", LOOK), env=os.environ | {"ESPALIER_MLFLOW": tracking},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == said
