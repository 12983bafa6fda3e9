"""`train.compile`: run the network's passes through torch.compile.

Only the passes are compiled. Weights, masks, checkpoints and artefacts are those of the network
itself. A compiled training draws the same random numbers as an eager one and agrees with it up to
rounding. A resumed one ends with the same bits, because a compiled graph depends only on the shape
of its batch, not on earlier batches.
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
    """`train.compile: true` on a machine without a compiler that torch.compile can use."""


def check_compiler(device: torch.device) -> None:
    """Refuse `compile: true` before any work if there is no compiler.

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
    """What inductor would not find: a C++ compiler (CXX, else g++, or clang++ on macOS) or Python's
    headers. None if both are there."""
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
    """`model` with forward and backward passes compiled at first use.

    There is one graph per mode (training, evaluation) and batch shape, so a small last batch has
    its own. Graphs of earlier trainings in this process are discarded, because torch stores at most
    eight per forward method and runs later ones uncompiled.
    """
    torch.compiler.reset()
    return torch.compile(model, dynamic=False, **HOW)  # type: ignore[no-any-return]
