"""`train.compile`: the network's passes by torch.compile.

Only the passes are compiled; weights, masks, checkpoints and artefacts are those of the network
itself. A compiled training draws the same random numbers as one that is not and agrees with it up
to rounding; resumed, it agrees with itself to the bit, because a graph depends on the shape of its
batch alone, not on what this process has seen before.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

HOW: dict[str, Any] = {"backend": "inductor", "options": {"fallback_random": True}}


class CompileError(RuntimeError):
    """`train.compile: true` where torch.compile has nothing to compile with."""


def check_compiler(device: torch.device) -> None:
    """Refuse `compile: true` before any work where there is no compiler.

    Raises:
        CompileError: says what is missing for `device`, and the two ways out.
    """
    missing = _missing_for_cpu() if device.type == "cpu" else _missing_for_gpu()
    if missing:
        raise CompileError(
            f"train.compile: true, but torch.compile needs {missing}; install it, or set "
            "train.compile: false in params.yaml"
        )


def _missing_for_cpu() -> str | None:
    """The missing part that inductor's search (CXX, else g++, clang++ on a Mac) would need."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler.split()[0]) is None:
        return f"a C++ compiler and there is no {compiler!r} on the PATH (CXX names another)"
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        return f"Python's headers and there is no Python.h in {headers}"
    return None


def _missing_for_gpu() -> str | None:
    return None if find_spec("triton") else "the package triton"


def compiled(model: nn.Module) -> nn.Module:
    """`model` with forward and backward passes that are compiled at first use.

    One graph per mode (training, evaluation) and batch shape; the last batch of a split has its
    own. Graphs of earlier trainings in this process are dropped, because torch stores eight per
    forward method and would run later ones uncompiled.
    """
    torch.compiler.reset()
    return torch.compile(model, dynamic=False, **HOW)  # type: ignore[no-any-return]
