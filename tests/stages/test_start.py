"""What a process imports before it knows what to do. By name, not by time."""

from __future__ import annotations

import subprocess
import sys

LIGHT = ("stages.report", "pipeline.cli.run", "pipeline.cli.main", "pipeline.cli.locks",
         "pipeline.cli.study", "pipeline.cli.status", "pipeline.cli.readme")  # fmt: skip
STAGES = ("prepare_data", "train", "prune", "finetune", "evaluate", "sweep", "connect")
HEAVY = ("torchvision", "transformers", "mlflow", "pandas", "matplotlib", "sklearn", "scipy",
         "dvc", "PIL")  # fmt: skip
PROGRAM = f"""
import importlib, sys
for name in {LIGHT}:
    importlib.import_module(name)
    print(name, *(m for m in ("torch", "numpy", *{HEAVY}) if m in sys.modules))
for name in {STAGES}:
    importlib.import_module("stages." + name)
print("stages", *(m for m in {HEAVY} if m in sys.modules))
"""


def test_libraries_are_imported_where_they_are_used() -> None:
    """torch takes 2.6 CPU seconds to import, MLflow and matplotlib as much again."""
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    ).stdout
    assert said.splitlines() == [*LIGHT, "stages"]
